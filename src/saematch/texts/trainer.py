"""Spec of the devices and the precision of the language model."""

from __future__ import annotations

from dataclasses import replace

import torch

from saematch.core.errors import InputError
from saematch.core.specs import AtLeast1, spec

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@spec("trainer")
class TrainerSpec:
    """Spec of Lightning's Trainer, which runs the language model.

    SAEs always compute in float32. The precision applies to the language model only.
    """

    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    precision: str = "32-true"
    """Precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``. A language model that is loaded in
    half precision (``model.dtype``) computes in half precision."""
    batch_size: AtLeast1 = 16
    """Number of texts in a batch."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision={self.precision!r} is not one of {', '.join(PRECISIONS)}; to "
                "load the language model in half precision, set model.dtype=bfloat16"
            )
        if self.devices != 1 and self.strategy != "ddp_spawn":
            raise InputError(
                f"trainer.devices={self.devices} needs trainer.strategy=ddp_spawn: only work "
                "on texts uses several devices, and the rest of a run is one process"
            )
        if self.batch_size < 1:
            raise InputError(f"trainer.batch_size={self.batch_size}: at least 1 is needed")

    @property
    def device_type(self) -> str:
        """Type of device of the language model: ``cpu``, ``gpu`` or another accelerator."""
        if self.accelerator != "auto":
            return self.accelerator
        return "gpu" if torch.cuda.is_available() else "cpu"

    def at_most(self, n: int) -> TrainerSpec:
        """Return a copy that uses at most ``n`` devices."""
        if self.devices == 1:
            return self
        available = torch.cuda.device_count() if self.device_type in ("gpu", "cuda") else n
        n_devices = int(self.devices) if str(self.devices).isdigit() else available
        if n_devices <= n:
            return self
        return replace(self, devices=n, strategy="auto" if n == 1 else self.strategy)
