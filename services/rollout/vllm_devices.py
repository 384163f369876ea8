"""Which device a worker process of vLLM computes on."""

from services.common.devices import device_name


class NamedDevice:
    """Part of the class that is mixed into vLLM's worker class."""

    def baton_device(self) -> str:
        """`cpu`, or the GPU's name."""
        return device_name(self.device)
