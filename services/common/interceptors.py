"""Server side of the error table: exceptions become gRPC statuses in one place."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc

from baton.errors import ERROR_KEY, BatonError, StoreUnavailableError, to_status

_DO_NOT_RETRY = ("grpc-retry-pushback-ms", "-1")

log = logging.getLogger(__name__)


async def _abort(context: grpc.aio.ServicerContext, method: str, error: Exception) -> NoReturn:
    status, message, name = to_status(error)
    if not isinstance(error, BatonError) or message != str(error):
        log.exception("%s failed", method)
    trailers = [(ERROR_KEY, name)]
    if isinstance(error, StoreUnavailableError):
        trailers.append(_DO_NOT_RETRY)  # the service has waited for its store already; retries would wait five times as long
    await context.abort(status, message, tuple(trailers))
    raise AssertionError("abort raises")


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Answers every exception of a handler with its status; what is not ours, or too long to send, is logged with its
    traceback."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith("/grpc."):
            return handler

        async def unary(request: Any, context: grpc.aio.ServicerContext) -> Any:
            inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
            try:
                return await inner(request, context)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:  # the boundary: whatever it is, the caller gets a status
                await _abort(context, method, error)

        async def stream(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            try:
                async for response in inner(request, context):
                    yield response
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:  # the boundary, as above
                await _abort(context, method, error)

        kind = ("stream" if handler.request_streaming else "unary") + ("_stream" if handler.response_streaming else "_unary")
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            stream if handler.response_streaming else unary,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
