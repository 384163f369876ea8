"""The base class and the value types that every section of the run file is built from."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


def matching(pattern: str, rule: str, fix: str) -> AfterValidator:
    """Accepts only text that the regular expression `pattern` matches as a whole; `rule` and `fix` say it in
    words."""
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"{rule}; {fix}")
        return text

    return AfterValidator(check)


class Section(BaseModel):
    """A section of the run file: immutable, strictly typed, and closed to unknown keys.

    A whole number is accepted where a fraction is expected and nothing else is converted: true is not 1, "4"
    is not 4, and a bare string is not a list of one. Each field is followed by a string literal that gives
    its meaning, its unit, and what zero or null stands for; it becomes the field's description.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


FunctionName = Annotated[
    str,
    matching(
        r"[A-Za-z_]\w*((\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)?",
        "must be a built-in name or module:callable",
        "write it like my_package.my_module:my_function",
    ),
]
