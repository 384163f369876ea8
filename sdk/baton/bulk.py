"""The two calls that carry samples in bulk, as both ends of them see the wire: BufferService's Put and Lease."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from baton import wire
from baton.api.buffer.v1 import buffer_pb2 as pb
from baton.samples import Samples, fits

_NUMBERS = {kind: kind.DESCRIPTOR.fields_by_name["samples"].number for kind in (pb.PutRequest, pb.LeaseResponse)}


@dataclass(frozen=True, slots=True)
class BulkMessage:
    """A PutRequest or LeaseResponse: all but its samples, and these as they came."""

    head: Any
    raw_samples: memoryview

    @classmethod
    def put_request(cls, raw: bytes) -> Self:
        """Deserializes a PutRequest."""
        return cls._parse(pb.PutRequest, raw)

    @classmethod
    def lease_response(cls, raw: bytes) -> Self:
        """Deserializes a LeaseResponse."""
        return cls._parse(pb.LeaseResponse, raw)

    @classmethod
    def _parse(cls, kind: type, raw: bytes) -> Self:
        head, samples = wire.without_samples(raw, _NUMBERS[kind])
        return cls(kind.FromString(head), samples)

    def samples(self) -> Samples:
        """The samples; arrays are views of the message. Raises as `Samples.from_proto`."""
        return wire.decode(self.raw_samples)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Samples as a SampleBatch in parts to be joined, and how many they are."""

    count: int
    parts: list[wire.Buffer]

    @classmethod
    def of(cls, *samples: Samples) -> Self:
        """All of them, one after the other."""
        elements, light = wire.encode(*samples)
        return cls(sum(map(len, samples)), [*elements, light])


def serialized(head: pb.PutRequest | pb.LeaseResponse, samples: Encoded) -> bytes:
    """The message with the samples."""
    return b"".join([head.SerializeToString(), *wire.delimited(_NUMBERS[type(head)], samples.parts)])


def messages(parts: Sequence[Samples]) -> Iterator[Encoded]:
    """What goes into one message each: all parts into one if they fit, else each part into as many as it needs."""
    encoded = Encoded.of(*parts)
    if fits(wire.size(encoded.parts)):
        yield encoded
    else:
        for part in parts:
            yield from map(Encoded.of, part.split())
