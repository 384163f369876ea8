"""SampleBatch in protobuf's own wire format, without the copies of the generated code: samples are most of what is sent.

Arrays of tokens are neither parsed nor copied where they arrive, and copied once where they are sent. Messages are what
every protobuf library reads and writes; in ours the elements of arrays come first, before all the rest (the light part).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from google.protobuf.message import DecodeError

from baton.api.common.v1 import samples_pb2 as pb
from baton.errors import InvalidRequestError
from baton.samples import RAGGED_COLUMNS, Samples

Buffer = bytes | memoryview

_VARINT, _DELIMITED = 0, 2
_RAGGED = {pb.SampleBatch.DESCRIPTOR.fields_by_name[name].number: name for name in RAGGED_COLUMNS}
_VALUES = pb.Ragged.DESCRIPTOR.fields_by_name["values"].number


def delimited(number: int, parts: Sequence[Buffer]) -> list[Buffer]:
    """A field that holds bytes, a string or a message, as parts to be joined."""
    return [_varint(number << 3 | _DELIMITED) + _varint(size(parts)), *parts]


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview, int]]:
    """The fields of a message: number, value, and where the field ends.

    Raises InvalidRequestError if it is no message, or has fields of other kinds than ours.
    """
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        value, at = _read_varint(message, at)
        if tag & 7 == _DELIMITED:
            if at + value > len(message):
                raise InvalidRequestError("a message ends within a field; was it cut off?")
            at += value
            yield tag >> 3, message[at - value : at], at
        elif tag & 7 == _VARINT:
            yield tag >> 3, value, at
        else:
            raise InvalidRequestError(f"field {tag >> 3} of a message has wire type {tag & 7}, which ours never have")


def encode(*parts: Samples) -> tuple[list[Buffer], bytes]:
    """A SampleBatch of all parts as (the elements of its arrays, its light part), to be joined. Elements are views.

    Raises ValueError as `Samples.concat`.
    """
    elements: list[Buffer] = []
    for number, name in _RAGGED.items():
        columns = [column for part in parts if (column := getattr(part, name)) is not None and len(column.values)]
        if columns:
            values = [np.ascontiguousarray(column.values, RAGGED_COLUMNS[name]).view(np.uint8).data for column in columns]
            elements += delimited(number, delimited(_VALUES, values))
    return elements, Samples.light_proto(parts).SerializeToString()


def size(parts: Sequence[Buffer]) -> int:
    """Bytes of all parts."""
    return sum(map(len, parts))


def decode(message: memoryview) -> Samples:
    """The samples of a SampleBatch; arrays are views of it if their elements come first. Raises as `Samples.from_proto`."""
    return decode_parts(message)[0]


def decode_parts(message: memoryview) -> tuple[Samples, int | None]:
    """As `decode`, and the bytes of the message's light part; None if that holds elements, as other senders may have it."""
    values: dict[str, Buffer] = {}
    light = 0
    for number, value, end in fields(message):
        inner = list(fields(value)) if number in _RAGGED else []
        if [number for number, _, _ in inner] != [_VALUES]:
            break
        values[_RAGGED[number]], light = inner[0][1], end
    try:
        rest = pb.SampleBatch.FromString(message[light:])
    except DecodeError as error:
        raise InvalidRequestError(f"samples cannot be read as a SampleBatch ({error}); were they cut off?") from None
    bare = not any(len(getattr(rest, name).values) for name in RAGGED_COLUMNS if rest.HasField(name))
    return Samples.from_proto(rest, values), len(message) - light if bare else None


def without_samples(message: bytes, number: int) -> tuple[bytes, memoryview]:
    """A message without that field, and what the field holds; nothing if the message does not have it."""
    rest: list[Buffer] = []
    samples = memoryview(b"")
    for found, value, _ in fields(memoryview(message)):
        if isinstance(value, int):
            rest.append(_varint(found << 3 | _VARINT) + _varint(value))
        elif found == number:
            samples = value
        else:
            rest += delimited(found, [value])
    return b"".join(rest), samples


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise InvalidRequestError("a message ends within a number; was it cut off?")
