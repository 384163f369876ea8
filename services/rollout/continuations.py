"""Whether a prompt goes on exactly where an earlier response ended."""

from collections.abc import Sequence

import numpy as np

from baton.errors import InvalidRequestError


def check_continues(group_id: str, tokens: Sequence[int], earlier: np.ndarray) -> None:
    """`earlier` [tokens of an earlier prompt and its response] must be the beginning of `tokens`.

    Raises InvalidRequestError, naming the group and the first token that differs: text that was decoded and encoded again
    often has other tokens, and what is trained then is not what was sampled.
    """
    begin = np.asarray(tokens[: len(earlier)])
    if len(begin) < len(earlier):
        raise InvalidRequestError(
            f"prompt {group_id} has {len(tokens)} tokens, fewer than the {len(earlier)} that it continues; send those, and "
            "after them what is new"
        )
    differing = np.flatnonzero(begin != earlier)
    if len(differing):
        at = int(differing[0])
        raise InvalidRequestError(
            f"prompt {group_id} has token {begin[at]} at {at}, where the response that it continues has {earlier[at]}; send "
            "token_ids: the earlier ones as they came, and after them what is new"
        )
