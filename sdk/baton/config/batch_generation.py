"""`models.<name>.batch_generation`: the order of prompts and the start of static batches."""

from typing import Literal

from baton.config.base import Count, Section


class BatchGenerationConfig(Section):
    """Sorting prompts by length, so that a static batch wastes little on waiting for its longest, and a cap on
    what its start takes."""

    ranking: bool = False
    """Sort an episode's prompts by length before they are cut into static batches, the longest first; equal
    lengths keep their order. Batches are cut out of the whole episode and go to the replicas by turns, as one
    request each, whatever `generation_batch_size` says. Samples are stored and trained in the order of the
    prompts all the same, unless a flow of the user's own has another."""

    length_key: Literal["tokens", "words"] = "tokens"
    """What `ranking` counts. `words` counts as ChatLearn does: each Chinese character (U+4E00 to U+9FA5), and
    each piece between single blanks of what is left, empty ones too."""

    min_prompt_length: Count = 0
    """Upper limit, in tokens, on the part of the prompts that a static batch processes at once at its start;
    the rest follows token by token, with the same result and less memory. 0: no limit."""
