"""What a process computes on, named so that two processes can tell whether it is the same."""

import torch


def device_name(device: torch.device) -> str:
    """`cpu`, or `GPU-` and the UUID, which does not depend on the GPUs that a process sees."""
    if device.type != "cuda":
        return device.type
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
