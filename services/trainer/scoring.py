"""Log-probabilities, values and scores: what every rank does for each command, from its request to its part of the answer.

Every rank gets all samples; the data-parallel ranks share them, and the last pipeline stage of each answers for its share.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from baton.api.common.v1 import samples_pb2
from baton.api.trainer.v1 import scoring_pb2 as pb
from baton.samples import Samples
from services.trainer.checks import SCORED, check_fits, require
from services.trainer.megatron.heads import Head
from services.trainer.megatron.parallel import Layout
from services.trainer.merging import SCORE_TOKENS, cuts
from services.trainer.models import Models
from services.trainer.packing import PackedBatch, pack
from services.trainer.ranks import Handler

_RANK_BYTES = 4


class Scoring:
    """One rank's scoring commands."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def handlers(self) -> dict[str, Handler]:
        """The commands, for `Ranks`."""
        requests: dict[Head, Any] = {
            "logprobs": pb.ComputeLogprobsRequest, "values": pb.ComputeValuesRequest, "scores": pb.ComputeScoresRequest,
        }  # fmt: skip
        return {
            f"Compute{head.capitalize()}": lambda raw, head=head, kind=kind: self._score(kind.FromString(raw), head)
            for head, kind in requests.items()
        }

    def _score(self, request: Any, head: Head) -> bytes:
        """This rank's part, for `joined`: float32 of its share of the samples."""
        model = self._models.scoring(request.role, head)
        samples = Samples.from_proto(request.samples)
        require(samples, SCORED)
        check_fits(samples, model.shape)
        first, end = share(samples.token_counts(), model.layout)
        rows = rows_of(samples.take(range(first, end)), feed_last=head == "scores", share_prefix=model.share_prefix)
        return answer_of(model.layout, model.score(rows))


def share(token_counts: np.ndarray, layout: Layout) -> tuple[int, int]:
    """The samples [first, end) of this data-parallel rank: about as many tokens as every other one's."""
    ends = np.cumsum(token_counts)
    total = int(ends[-1]) if len(ends) else 0
    cuts = [int(np.searchsorted(ends, total * rank / layout.data_size)) for rank in range(layout.data_size)]
    cuts.append(len(ends))
    return cuts[layout.data_rank], cuts[layout.data_rank + 1]


def rows_of(samples: Samples, *, feed_last: bool, share_prefix: bool) -> list[PackedBatch]:
    """All samples in packed rows of about SCORE_TOKENS."""
    parts = [samples.take(cut) for cut in cuts(samples.token_counts().tolist(), SCORE_TOKENS)]
    return [pack(part, share_prefix=share_prefix, feed_last=feed_last) for part in parts]


def answer_of(layout: Layout, outputs: Sequence[torch.Tensor]) -> bytes:
    """This rank's part for `joined`: nothing but on one rank of each last pipeline stage."""
    if not layout.is_last_stage or layout.tensor_rank:
        return b""
    values = torch.cat(list(outputs)).float().cpu().numpy() if outputs else np.empty(0)
    return layout.data_rank.to_bytes(_RANK_BYTES, "little") + values.astype("<f4").tobytes()


def joined(parts: Sequence[bytes]) -> bytes:
    """The shares of all data-parallel ranks, in the samples' order."""
    shares = sorted((int.from_bytes(part[:_RANK_BYTES], "little"), part[_RANK_BYTES:]) for part in parts if part)
    return b"".join(values for _, values in shares)


def ragged(values: bytes, like: samples_pb2.Ragged) -> samples_pb2.Ragged:
    """One row of values for each row of `like`."""
    return samples_pb2.Ragged(values=values, lengths=like.lengths)
