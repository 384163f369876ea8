"""The order of prompts in a window, and what padding it costs: pure functions of lengths."""

import re
from collections.abc import Iterator, Sequence

_CHINESE = re.compile("[\u4e00-\u9fa5]")


def ranked(lengths: Sequence[int]) -> list[int]:
    """Indices by length, the longest first; equal lengths keep their order."""
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def words(text: str) -> int:
    """Chinese characters, and the pieces between blanks of what is left, empty ones too, as ChatLearn counts them."""
    return len(_CHINESE.findall(text)) + len(_CHINESE.sub("", text).split(" "))


def batches(order: Sequence[int], size: int) -> Iterator[list[int]]:
    """Cuts an order into batches of at most `size` rows."""
    for start in range(0, len(order), size):
        yield list(order[start : start + size])


def padded_tokens(lengths: Sequence[int], order: Sequence[int], size: int) -> int:
    """Tokens of padding, if each batch of `size` rows, cut from `order`, were padded to its longest row.

    A static batch stores no padding, but waits as long: a short prompt's row is decoded until the longest one's is done.
    """
    rows = [[lengths[index] for index in batch] for batch in batches(order, size)]
    return sum(max(batch) * len(batch) - sum(batch) for batch in rows)


def padded_share(lengths: Sequence[int], order: Sequence[int], size: int) -> float:
    """Padding as a share of all tokens that the padded batches hold; 0 without any."""
    padding = padded_tokens(lengths, order, size)
    return padding / total if (total := padding + sum(lengths)) else 0.0
