"""The spec of where and how precisely the language model runs."""

from __future__ import annotations

from dataclasses import replace

import torch

from saematch.core.errors import InputError
from saematch.core.specs import AtLeast1, spec

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@spec("trainer")
class TrainerSpec:
    """Spec of Lightning's Trainer: where and how precisely the language model runs.

    SAEs compute in float32 whatever the precision of the language model.
    """

    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    precision: str = "32-true"
    """``32-true``, ``bf16-mixed`` or ``16-mixed``; a language model loaded in half precision
    (``model.dtype``) computes in it."""
    batch_size: AtLeast1 = 16
    """Texts in a batch."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision={self.precision!r} is not one of {', '.join(PRECISIONS)}; for "
                "a language model wholly in half precision set model.dtype=bfloat16"
            )
        if self.devices != 1 and self.strategy != "ddp_spawn":
            raise InputError(
                f"trainer.devices={self.devices} needs trainer.strategy=ddp_spawn: only work "
                "on texts is spread over devices, the rest of a run is one process"
            )
        if self.batch_size < 1:
            raise InputError(f"trainer.batch_size={self.batch_size}: at least 1 is needed")

    @property
    def device_type(self) -> str:
        """What the language model runs on."""
        if self.accelerator != "auto":
            return self.accelerator
        return "gpu" if torch.cuda.is_available() else "cpu"

    def at_most(self, n: int) -> TrainerSpec:
        """Return the same on no more devices than there is work for."""
        if self.devices == 1:
            return self
        there = torch.cuda.device_count() if self.device_type in ("gpu", "cuda") else n
        wanted = int(self.devices) if str(self.devices).isdigit() else there
        if wanted <= n:
            return self
        return replace(self, devices=n, strategy="auto" if n == 1 else self.strategy)
