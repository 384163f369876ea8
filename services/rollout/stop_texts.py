"""Texts that end a response: which of them are tokens that no text shows, and which can never come."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from baton.errors import ConfigError, InvalidRequestError

REMEMBERED = 1024
"""So many texts are looked at once only."""


class StopTexts:
    """What one tokenizer makes of stop texts."""

    def __init__(self, tokenizer: Any) -> None:
        added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self._hidden = frozenset(self._special.values())
        self._tokenizer = tokenizer
        self._can_come = lru_cache(REMEMBERED)(self._has_tokens)

    def token_ids(self, texts: Sequence[str]) -> list[int]:
        """Ids of those that are special tokens: responses' texts leave them out, so they end a response by their id.

        Raises InvalidRequestError for a text that no response can have: it would be of no effect.
        """
        ids = []
        for text in texts:
            if text in self._special:
                ids.append(self._special[text])
            elif not self._can_come(text):
                raise InvalidRequestError(
                    f"stop text {text!r}: the tokenizer has no tokens for it, so no response can end with it; correct it, "
                    "or leave it out"
                )
        return ids

    def option_ids(self, texts: Sequence[str]) -> list[int]:
        """The same for the run file's texts: raises ConfigError."""
        try:
            return self.token_ids(texts)
        except InvalidRequestError as error:
            raise ConfigError(f"models.policy.stop_token_list: {error}") from None

    def _has_tokens(self, text: str) -> bool:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if not ids:  # white space that lies between tokens when they are decoded
            return not text.strip()
        return self._hidden.isdisjoint(ids)
