"""Static batch generation: an initiation, then one position at a time until the last row is done.

    initiation   [B, length] tokens at once, where length is that of the shortest prompt, or the cap if that is less
    increments   [B, 1] tokens each; a row whose prompt goes on is fed its prompt, the others what they drew

So no row is ever padded, and every row sees exactly what it would see alone.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from services.static_rollout.rows import Response, Row, Writer
from services.trainer.megatron.stage import CachedStage


class StaticGenerator:
    """Every rank calls the same methods with the same rows; the rank that samples gets the responses."""

    def __init__(
        self, stage: CachedStage, end_tokens: frozenset[int], decode: Callable[[list[int]], str],
        min_prompt_length: int = 0,
    ) -> None:  # fmt: skip
        """`min_prompt_length`: most tokens of an initiation; 0: no limit."""
        self.stage = stage
        self._end_tokens = end_tokens
        self._decode = decode
        self._cap = min_prompt_length

    def generate(self, rows: Sequence[Row]) -> list[Response]:
        """The responses of one batch, in the order of `rows`, on the sampler's rank; an empty list elsewhere."""
        shortest = min(len(row.prompt) for row in rows)
        position = min(shortest, self._cap or shortest)
        writer = Writer(rows, self._end_tokens, self._decode) if self.stage.is_sampler else None
        self.stage.begin(len(rows), max(len(row.prompt) + row.limit for row in rows) - 1)  # a last token is not fed
        fed = [row.prompt[:position] for row in rows]
        try:
            while fed:
                tokens_BL = torch.tensor(fed, device=self.stage.layout.device)
                logits_BV = self.stage.forward(tokens_BL, want_logits=position >= shortest)
                if position < shortest:
                    fed = [row.prompt[position : position + 1] for row in rows]
                else:
                    fed = self._shared(writer and writer.advance(position, logits_BV), writer and writer.done, len(rows))
                position += 1
        finally:
            self.stage.end()
        return writer.responses if writer else []

    def _shared(self, tokens: list[int] | None, done: bool | None, rows: int) -> list[list[int]]:
        """Every rank's next tokens [B, 1], which the sampler knows; none when it is done."""
        layout = self.stage.layout
        message = torch.tensor([*tokens, int(not done)] if tokens else [0] * (rows + 1), device=layout.device)
        if layout.tensor_size * layout.pipeline_size > 1:
            dist.broadcast(message, self.stage.sampler_rank)
        *tokens, goes_on = message.tolist()
        return [[token] for token in tokens] if goes_on else []
