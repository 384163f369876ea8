"""Work on memory that stays where it is, put on the GPU again and again: as CUDA graphs, which cost little to launch."""

import logging
from collections.abc import Callable, Sequence

import torch

log = logging.getLogger(__name__)


@torch.no_grad()
def copy(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """A piece: one tensor into another, each as the target's type."""
    torch._foreach_copy_(targets, sources)


class Replay:
    """Numbered pieces of work. Each runs as it is until `record`; from then on, on a GPU, its graph does."""

    def __init__(self, pieces: Sequence[Callable[[], None]], device: torch.device) -> None:
        """The pieces take no memory and do not wait for the device. They must not hold who holds this: a group is left, and
        memory is free, as soon as nobody needs them, not when the garbage collector comes by."""
        self._pieces = pieces
        self._device = device
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._tried = False

    def run(self, index: int) -> None:
        """Puts a piece on the current stream; on the CPU, does it."""
        if self._graphs:
            self._graphs[index].replay()
        else:
            self._pieces[index]()

    def record(self) -> None:
        """Makes the graphs, if that was not tried yet. Every piece must have run before; nothing is executed."""
        if self._device.type != "cuda" or self._tried:
            return
        self._tried = True
        try:
            with torch.cuda.stream(torch.cuda.Stream(self._device)):
                self._graphs = [_captured(piece) for piece in self._pieces]
        except RuntimeError as error:
            log.warning("CUDA graphs of weight updates could not be made; they go on without, slower (%s)", error)


def _captured(piece: Callable[[], None]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")  # other threads may go on with work of theirs
    try:
        piece()
    finally:
        graph.capture_end()
    return graph
