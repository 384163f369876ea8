"""Client of the models that a trainer group hosts: log-probabilities, values, scores, and samples made of texts."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from baton.api.trainer.v1 import scoring_pb2 as pb
from baton.api.trainer.v1.scoring_pb2_grpc import ScoringServiceStub
from baton.channel import ServiceClient
from baton.samples import MESSAGE_BYTES, Ragged, Samples

_RECORD_BYTES = 64
"""What a record takes beside its texts, at most."""


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A prompt, as text or as chat messages ({"role", "content"}), and one completion of it."""

    sample_id: str
    group_id: str
    prompt: str | Sequence[dict[str, str]]
    completion: str

    def to_proto(self) -> pb.TextRecord:
        """The wire form."""
        message = pb.TextRecord(sample_id=self.sample_id, group_id=self.group_id, completion=self.completion)
        if isinstance(self.prompt, str):
            message.prompt_text = self.prompt
        else:
            message.chat.extend(pb.ChatTurn(**turn) for turn in self.prompt)
        return message


class ScoringClient(ServiceClient):
    """Evaluates the models of one trainer group as they are now. Errors: see `baton.errors`."""

    SERVICE = "baton.api.trainer.v1.ScoringService"
    STUB = ScoringServiceStub

    async def compute_logprobs(self, samples: Samples, *, role: str = "", timeout_s: float = 600.0) -> Ragged:
        """Log-probabilities of every response token by `ppo_policy` (the default) or `reference`: one row per sample."""
        answers = self._scored("ComputeLogprobs", pb.ComputeLogprobsRequest, samples, role, timeout_s)
        return _joined([answer.logprobs async for answer in answers])

    async def compute_values(self, samples: Samples, *, role: str = "", timeout_s: float = 600.0) -> Ragged:
        """Values of the state before every response token, by `value` or `ppo_value`: one row per sample."""
        answers = self._scored("ComputeValues", pb.ComputeValuesRequest, samples, role, timeout_s)
        return _joined([answer.values async for answer in answers])

    async def compute_scores(self, samples: Samples, *, role: str = "", timeout_s: float = 600.0) -> np.ndarray:
        """The reward model's score of every sample, read at its last token: float32 [S]."""
        answers = self._scored("ComputeScores", pb.ComputeScoresRequest, samples, role, timeout_s)
        return np.frombuffer(b"".join([answer.scores async for answer in answers]), "<f4")

    async def tokenize(self, records: Sequence[TextRecord], *, role: str = "", timeout_s: float = 600.0) -> Samples:
        """Samples with prompt_ids and response_ids, in the records' order."""
        requests = [pb.TokenizeRequest(records=part, role=role) for part in _parts(records)]
        answers = [Samples.from_proto(answer.samples) async for answer in self._stream("Tokenize", requests, timeout_s)]
        return Samples.concat(answers)

    async def _scored(
        self, method: str, request: type, samples: Samples, role: str, timeout_s: float
    ) -> AsyncIterator[Any]:
        """One answer for each part of the samples, of which only what is read travels."""
        read = Samples(
            samples.sample_ids, prompt_ids=samples.prompt_ids, response_ids=samples.response_ids,
            temperatures=samples.temperatures,
        )  # fmt: skip
        requests = [request(samples=part.to_proto(), role=role) for part in read.split()]
        async for answer in self._stream(method, requests, timeout_s):
            yield answer


def _joined(parts: Sequence[Any]) -> Ragged:
    """One column of the parts' rows, which are float32."""
    values = np.frombuffer(b"".join(part.values for part in parts), "<f4")
    return Ragged(values, np.frombuffer(b"".join(part.lengths for part in parts), "<u4"))


def _parts(records: Sequence[TextRecord]) -> Iterator[list[pb.TextRecord]]:
    """The records' wire forms, in messages below gRPC's limit."""
    part, size = [], 0
    for message in (record.to_proto() for record in records):
        if part and size + message.ByteSize() + _RECORD_BYTES > MESSAGE_BYTES:
            yield part
            part, size = [], 0
        part.append(message)
        size += message.ByteSize() + _RECORD_BYTES
    if part:
        yield part
