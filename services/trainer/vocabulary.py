"""Whether a model reads token ids as the policy writes them."""

from pathlib import Path

from baton.errors import ConfigError
from services.common.tokenizers import find_tokenizer
from services.trainer.megatron.family import ModelShape


def check_vocabulary(role: str, directory: Path, policy: Path) -> None:
    """Raises ConfigError unless the role's model has the policy's tokens. Rows of the embedding that no token has, which pad
    it, may differ."""
    if directory == policy:
        return
    tokens, expected = _tokens(directory), _tokens(policy)
    needed = max(expected.values()) + 1 if expected else ModelShape.read(policy).vocab_size
    if (rows := ModelShape.read(directory).vocab_size) < needed:
        raise ConfigError(
            f"models.{role}.model: {directory} has a vocabulary of {rows} tokens, and the policy {policy} of {needed}; "
            "take a model of the policy's family, with its tokenizer"
        )
    if not tokens or not expected:
        return  # a model without a tokenizer is taken at its size
    differing = next((token for token, number in expected.items() if tokens.get(token) != number), None)
    if differing is not None:
        raise ConfigError(
            f"models.{role}.model: the tokenizer of {directory} is not that of the policy {policy}: {differing!r} is token "
            f"{expected[differing]} of the policy's and {tokens.get(differing, 'none')} of the other; samples are token "
            "ids, so both must have one vocabulary"
        )


def _tokens(directory: Path) -> dict[str, int]:
    """Token -> id; nothing if the directory has no tokenizer."""
    tokenizer = find_tokenizer(directory)
    return {} if tokenizer is None else tokenizer.get_vocab()
