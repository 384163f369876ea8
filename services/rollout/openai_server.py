"""The OpenAI-compatible HTTP server: vLLM's own server code, on the replica's engine.

    http://HOST:PORT/groups/GROUP/v1    a base URL for agents: what they have sampled is recorded as that group
    http://HOST:PORT/v1                 the same, where each request is a group of its own, named by the answer's `id`

It answers chat completions, completions and the list of models, under the run file's sampling options where the agent gives
none. It refuses what the replica refuses: 503 while nothing is served, 409 for another version than the agent asked for, 429
when there is too much to do, or to be taken.
"""

import re
import warnings
from argparse import Namespace
from typing import Any

from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser

from baton.config.policy import PolicyConfig
from baton.errors import (
    BackpressureError,
    BatonError,
    ConfigError,
    InvalidRequestError,
    NotFoundError,
    NotReadyError,
    StalePolicyError,
)
from services.rollout.engine import VllmEngine
from services.rollout.recording_engine import ASKED, Asked, RecordingEngine
from services.rollout.recordings import Recordings
from services.rollout.service import Replica

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the module that all versions of vLLM have
    from vllm.entrypoints.openai.api_server import build_app, init_app_state
try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ImportError:
    from vllm.entrypoints.openai.cli_args import make_arg_parser

OPTIONS = {
    "api_key", "chat_template", "chat_template_content_format", "default_chat_template_kwargs", "enable_auto_tool_choice",
    "exclude_tools_when_tool_choice_none", "response_role", "return_tokens_as_token_ids", "tool_call_parser",
    "tool_parser_plugin", "trust_request_chat_template",
}  # fmt: skip
"""Arguments of vLLM's server that a run file may set."""

_STATUS = {
    InvalidRequestError: 400, NotFoundError: 404, StalePolicyError: 409, BackpressureError: 429, NotReadyError: 503,
}  # fmt: skip
_PATH = re.compile(r"(?:/groups/(?P<group>.+))?(?P<route>/v1/(?:chat/completions|completions|models))")
_TASKS = ("generate",)


async def openai_app(engine: VllmEngine, replica: Replica, recordings: Recordings, config: PolicyConfig) -> ASGIApp:
    """The server's app. Raises ConfigError for an option that is not in OPTIONS."""
    recording = RecordingEngine(engine, replica, recordings, config)
    arguments = _arguments(engine, replica.model, config.openai_args)
    app = build_app(arguments, _TASKS, engine.llm.model_config)
    app.add_exception_handler(BatonError, _refused)
    app.middleware_stack = None  # vLLM has built it, without that handler; Starlette builds it anew
    await init_app_state(recording, app.state, arguments, _TASKS)
    for handler in (app.state.openai_serving_chat, app.state.openai_serving_completion):
        handler.beam_search = _no_beam_search
        handler.override_max_tokens = None  # the run file's limit is what an agent gets that asks for none, and no ceiling
    return Door(app, replica)


def _arguments(engine: VllmEngine, model: str, options: dict[str, Any]) -> Namespace:
    if unknown := options.keys() - OPTIONS:
        name = min(unknown)
        raise ConfigError(
            f"models.policy.openai_args.{name}: got {options[name]!r}; only {', '.join(sorted(OPTIONS))} can be set; leave "
            "it out"
        )
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    config = engine.llm.vllm_config
    ours = {
        "model": config.model_config.model,
        "served_model_name": [model],
        "disable_log_stats": True,
        "structured_outputs_config": config.structured_outputs_config,
    }
    vars(arguments).update(ours | options)
    if isinstance(arguments.api_key, str):
        arguments.api_key = [arguments.api_key]  # vLLM takes every element for a key, and a text's are its letters
    if arguments.tool_parser_plugin:
        ToolParserManager.import_tool_parser(arguments.tool_parser_plugin)  # as vLLM's launcher does, which is not run here
    return arguments


def _no_beam_search(*_: Any, **__: Any) -> Any:
    raise ValueError("a beam search cannot be recorded as sampled; ask RolloutService.Generate for it")


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """OpenAI's form of an error."""
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
    body = {"message": str(error), "type": type(error).__name__, "param": None, "code": status}
    return JSONResponse({"error": body}, status, headers={"Retry-After": "1"} if status in (429, 503) else None)


class Door:
    """Before vLLM's app: the group from the path, and whether the replica takes the request."""

    def __init__(self, app: ASGIApp, replica: Replica) -> None:
        self._app = app
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        try:
            asked, route = self._admit(scope)
        except BatonError as error:
            answer = await _refused(Request(scope), error)
            await answer(scope, receive, send)
            return
        ASKED.set(asked)
        await self._app(scope | {"path": route, "raw_path": route.encode()}, receive, send)

    def _admit(self, scope: Scope) -> tuple[Asked, str]:
        match = _PATH.fullmatch(scope["path"])
        if match is None:
            raise NotFoundError(
                f"there is nothing at {scope['path']}; the base URL is /v1 or /groups/GROUP/v1, and has /chat/completions, "
                "/completions and /models"
            )
        exact, minimum = (_version(scope, header) for header in (b"baton-exact-version", b"baton-min-version"))
        if not match["route"].endswith("models"):  # again when it begins; here a stream can still be refused by its status
            self._replica.gate.admit(exact, minimum)
        return Asked(match["group"] or "", exact, minimum), match["route"]


def _version(scope: Scope, header: bytes) -> int | None:
    values = [value for name, value in scope["headers"] if name == header]
    if values and not values[-1].isdigit():
        raise InvalidRequestError(f"{header.decode()}: got {values[-1].decode('latin-1')!r}; must be a policy version")
    return int(values[-1]) if values else None
