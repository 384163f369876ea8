"""A model's tokenizer: a directory's own, never one that transformers makes up."""

from pathlib import Path
from typing import Any

from baton.errors import ConfigError


def load_tokenizer(source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """transformers' tokenizer of a directory or hub id, of which `revision` is a branch, tag or commit; its own Python code
    runs if that is trusted. Raises ConfigError."""
    from transformers import AutoTokenizer

    require_revisions(source, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise no_tokenizer(source, f"could not be loaded ({type(error).__name__}: {error})") from error
    require_own(tokenizer, source)
    return tokenizer


def find_tokenizer(source: str | Path, revision: str | None = None) -> Any | None:
    """As `load_tokenizer`; None if there is none."""
    try:
        return load_tokenizer(source, revision=revision)
    except ConfigError:
        return None


def require_revisions(source: str | Path, revision: str | None) -> None:
    """Raises ConfigError for a revision of a directory, which would have no effect."""
    if revision is not None and Path(source).is_dir():
        raise ConfigError(
            f"models.policy.tokenizer_revision: got {revision!r}; {source} is not had from a model hub; leave it out, or "
            "name a tokenizer on the hub in models.policy.tokenizer (a model's own is of models.policy.revision)"
        )


def require_own(tokenizer: Any, source: str | Path) -> None:
    """Raises ConfigError for one that transformers 5 makes up where a directory has a config.json and no tokenizer: it knows
    its special tokens and no text."""
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise no_tokenizer(source, "has no tokenizer")


def no_tokenizer(source: str | Path, cause: str) -> ConfigError:
    """The error for a tokenizer that cannot be had."""
    return ConfigError(
        f"models.policy.tokenizer: {str(source)!r} {cause}; write a directory or hub id of a tokenizer, or leave it out for "
        "the model's own; if it has Python code that you trust, set models.policy.trust_remote_code to true"
    )
