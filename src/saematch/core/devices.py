"""Names of devices, and whether this machine has them."""

from __future__ import annotations

import torch

from saematch.core.errors import InputError


def check_device(device: str | torch.device) -> torch.device:
    """Return the device with this name; ``InputError`` if the name is none of a device."""
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise InputError(
            f"device={device!r} is not the name of a device, such as cpu, cuda or cuda:1"
        ) from error


def usable_device(device: str | torch.device) -> torch.device:
    """Return the device with this name; ``InputError`` if it cannot be used on this machine."""
    place = check_device(device)
    try:
        torch.empty(1, device=place).cpu()
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device={str(device)!r} cannot be used here ({str(error).splitlines()[0]}): use cpu, "
            "or leave device out, which uses a GPU if there is one"
        ) from error
    return place
