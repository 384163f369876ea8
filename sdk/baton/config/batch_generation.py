"""`models.<name>.batch_generation`: the order of prompts and the start of static batches."""

from typing import Literal

from baton.config.base import Count, Section


class BatchGenerationConfig(Section):
    """Sorting prompts by length, so that a batch wastes little on padding, and a cap on what that costs."""

    ranking: bool = False
    """Sort the prompts of each episode by length, the longest first; equal lengths keep their order."""

    length_key: Literal["tokens", "words"] = "tokens"
    """What `ranking` counts. `words` counts Chinese characters and blank-separated words."""

    min_prompt_length: Count = 0
    """Upper limit, in tokens, on the part of the prompts that a static batch processes at once at its start;
    the rest follows token by token, with the same result and less memory. 0: no limit."""
