"""The trainer service's RPCs, on rank 0: decode, run the command on every rank, encode."""

import asyncio
import json
from pathlib import Path

import grpc

from baton.api.common.v1 import weights_pb2
from baton.api.trainer.v1 import trainer_pb2 as pb
from baton.api.trainer.v1.trainer_pb2_grpc import TrainerServiceServicer
from baton.config import RunConfig
from baton.errors import BatonError, InvalidRequestError, NotFoundError
from services.common.weight_sync.departures import call_off
from services.trainer.adapter_publishing import Contents
from services.trainer.handshake import own_facts, refused
from services.trainer.megatron.checkpoint import size_of
from services.trainer.ranks import Ranks
from services.trainer.trainer import Trainer, combine_groups, combine_publications, combine_steps

Context = grpc.aio.ServicerContext


class TrainerServicer(TrainerServiceServicer):
    """See trainer.proto. Method names are gRPC's."""

    def __init__(self, run: RunConfig, trainer: Trainer, ranks: Ranks) -> None:
        self._run = run
        self._trainer = trainer
        self._ranks = ranks
        self._own_facts: dict[str, str] | None = None
        self._contents = Contents(run.models.ppo_policy.lora)
        self._group = weights_pb2.WeightGroup()  # the open one
        self._step = asyncio.Lock()  # a step is two commands; another step's must not come between them

    async def TrainStep(self, request: pb.TrainStepRequest, context: Context) -> pb.TrainStepResponse:
        raw = request.SerializeToString()
        async with self._step:
            await self._ranks.execute("LeaseStep", raw)
            return combine_steps(await self._ranks.execute("TrainStep", raw))

    async def OpenWeightGroup(self, request: pb.OpenWeightGroupRequest, context: Context) -> pb.OpenWeightGroupResponse:
        if self._own_facts is None:
            source = self._trainer.models.policy.source
            tokenizer = self._run.tokenizer_name("ppo_policy") or source
            revision = self._run.tokenizer_revision("ppo_policy")
            self._own_facts = await asyncio.to_thread(own_facts, source, tokenizer, revision)
        if misfits := refused(self._own_facts, request):
            return pb.OpenWeightGroupResponse(refused=misfits)
        request.content = self._contents.chosen(request)
        group = combine_groups(await self._ranks.execute("OpenWeightGroup", request.SerializeToString()))
        await self._ranks.execute("AdoptWeightGroup", group.group_id.encode())
        self._contents.describe(group)
        self._group = group
        return pb.OpenWeightGroupResponse(group=group)

    async def PublishWeights(self, request: pb.PublishWeightsRequest, context: Context) -> pb.PublishWeightsResponse:
        try:
            sent = combine_publications(await self._ranks.execute("PublishWeights", request.SerializeToString()))
            return self._contents.sent(sent)
        except asyncio.CancelledError:  # the caller has gone: a receiver died, which the others must not wait for
            self._trainer.give_up_publishing()  # at once on this rank, and a little later on all others
            asyncio.get_running_loop().run_in_executor(None, call_off, self._group, "the caller gave the publication up")
            raise
        except NotFoundError:
            raise  # it names another group than the open one, which is whole
        except BatonError:
            await self._ranks.execute("AdoptWeightGroup", b"")  # a broken group is closed on every rank
            raise

    async def SaveCheckpoint(self, request: pb.SaveCheckpointRequest, context: Context) -> pb.SaveCheckpointResponse:
        if request.run:
            _check_json(request.run)
        parts = await self._ranks.execute("SaveCheckpoint", request.SerializeToString())
        path = parts[0].decode()
        written = 0 if request.background else await self._written(path)
        return pb.SaveCheckpointResponse(path=path, bytes=written)

    async def AwaitCheckpoint(self, request: pb.AwaitCheckpointRequest, context: Context) -> pb.AwaitCheckpointResponse:
        return pb.AwaitCheckpointResponse(bytes=await self._written(request.path))

    async def _written(self, path: str) -> int:
        """Its size, once it is whole. No command: the ranks may train meanwhile."""
        await asyncio.to_thread(self._trainer.saver.wait, Path(path))
        return await asyncio.to_thread(size_of, Path(path))

    async def LoadCheckpoint(self, request: pb.LoadCheckpointRequest, context: Context) -> pb.LoadCheckpointResponse:
        await self._ranks.execute("LoadCheckpoint", request.path.encode())
        return pb.LoadCheckpointResponse(global_step=self._trainer.global_step)

    async def ExportModel(self, request: pb.ExportModelRequest, context: Context) -> pb.ExportModelResponse:
        parts = await self._ranks.execute("ExportModel", request.directory.encode())
        return pb.ExportModelResponse(bytes=sum(int(part) for part in parts))

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        models = self._trainer.models
        roles = [self._role(role) for role in models.group.roles]
        layout = models.layout
        return pb.GetStatusResponse(
            model=roles[0].model,
            global_step=self._trainer.global_step,
            parameters=roles[0].parameters,
            tensor_parallel_size=layout.tensor_size,
            pipeline_parallel_size=layout.pipeline_size,
            data_parallel_size=layout.data_size,
            max_sequence_tokens=roles[0].max_sequence_tokens,
            group=models.group.name,
            roles=roles,
        )

    def _role(self, role: str) -> pb.RoleStatus:
        model = self._trainer.models.by_role[role]
        return pb.RoleStatus(
            role=role, model=self._run.model_name(role), parameters=model.parameter_count(),
            trained=role in self._trainer.models.trained, head=model.head,
            max_sequence_tokens=model.shape.max_positions,
        )  # fmt: skip


def _check_json(text: str) -> None:
    """Raises InvalidRequestError for what no checkpoint's marker could hold."""
    try:
        json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"run is no JSON ({error}); send what the marker shall hold as JSON") from None
