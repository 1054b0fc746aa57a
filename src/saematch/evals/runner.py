"""The Lightning runner of evaluations: devices, precision, progress, and going on after a kill."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from saematch.data.tokens import TokenBatch
from saematch.evals.splice import SplicePlan, evaluate_batch
from saematch.evals.stats import Totals
from saematch.files import replacing
from saematch.lm.hooks import LanguageModel

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
SAVE_SECONDS = 3.0
"""An unfinished evaluation is saved about this often."""


@dataclass(frozen=True)
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
    batch_size: int = 16
    """Texts in a batch."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"trainer.precision={self.precision!r} is not one of {', '.join(PRECISIONS)}; for "
                "a language model wholly in half precision set model.dtype=bfloat16"
            )
        if self.devices != 1 and self.strategy != "ddp_spawn":
            raise ValueError(
                f"trainer.devices={self.devices} needs trainer.strategy=ddp_spawn: only the "
                "evaluation is spread over devices, the rest of a run is one process"
            )
        if self.batch_size < 1:
            raise ValueError(f"trainer.batch_size={self.batch_size}: at least 1 is needed")

    def build(self, label: str) -> L.Trainer:
        """Return a Trainer that writes nothing itself and shows ``label`` on its bar."""
        for name in (
            "lightning.pytorch.utilities.rank_zero",
            "lightning.pytorch.accelerators.cuda",
        ):
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            return L.Trainer(
                accelerator=self.accelerator,
                devices=self.devices,
                strategy=self.strategy,
                precision=self.precision,  # type: ignore[arg-type]
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                callbacks=[_Bar(label)],
            )
        except MisconfigurationException as error:
            raise ValueError(f"trainer: {error}") from error


def evaluate(
    trainer: TrainerSpec,
    plan: SplicePlan,
    lm: LanguageModel,
    batches: Sequence[TokenBatch],
    label: str,
    path: Path,
    key: str,
) -> Totals:
    """Evaluate all batches and return their totals, which ``path`` holds afterwards.

    If ``path`` holds totals of the same ``key`` already, only the batches left are evaluated; sums
    are added in the same order, so the result is that of an unbroken run.
    """
    totals = Totals(plan.shapes)
    done = _load(totals, path, key)
    if done < len(batches):
        runner = _Runner(plan, lm, totals, batches, done, path, key)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            warnings.filterwarnings("ignore", ".*LeafSpec.*deprecated.*")
            trainer.build(label).test(runner, verbose=False)
        done = _load(totals, path, key)
        if done != len(batches):
            raise RuntimeError(f"{path} holds {done} of {len(batches)} batches after evaluation")
    return totals


class _Runner(L.LightningModule):
    """Feeds batches to ``evaluate_batch`` and saves the totals as it goes."""

    def __init__(
        self,
        plan: SplicePlan,
        lm: LanguageModel,
        totals: Totals,
        batches: Sequence[TokenBatch],
        done: int,
        path: Path,
        key: str,
    ) -> None:
        super().__init__()
        self.lm, self.totals = lm, totals
        self.plan, self.batches, self.done, self.path, self.key = plan, batches, done, path, key
        self.saved_at = time.monotonic()

    def test_dataloader(self) -> DataLoader[Any]:
        left = list(self.batches[self.done :])
        sampler = None
        if self.trainer.world_size > 1:  # Lightning's own sampler would repeat batches
            sampler = UnrepeatedDistributedSampler(
                left,
                num_replicas=self.trainer.world_size,
                rank=self.trainer.global_rank,
                shuffle=False,
            )
        return DataLoader(left, batch_size=None, sampler=sampler)

    def on_test_start(self) -> None:
        self.plan = self.plan.to(self.device)
        if not self.trainer.is_global_zero:
            self.totals.reset()  # what was done before counts once, on the first process

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        evaluate_batch(self.plan, self.lm, batch, self.totals)
        if self.trainer.world_size == 1 and time.monotonic() - self.saved_at > SAVE_SECONDS:
            _save(self.totals, self.path, self.key, self.done + batch_idx + 1)
            self.saved_at = time.monotonic()

    def on_test_epoch_end(self) -> None:
        with self.totals.sync_context(should_unsync=False):
            pass
        if self.trainer.is_global_zero:
            _save(self.totals, self.path, self.key, len(self.batches))
        self.trainer.strategy.barrier()


class _Bar(TQDMProgressBar):
    """Lightning's progress bar with a name of our own."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    @property
    def test_description(self) -> str:
        return self.label


def _save(totals: Totals, path: Path, key: str, done: int) -> None:
    metadata = {"key": key, "done": json.dumps(done)}
    state = {name: tensor.cpu().contiguous() for name, tensor in totals.state_dict().items()}
    with replacing(path) as part:
        save_file(state, part, metadata)


def _load(totals: Totals, path: Path, key: str) -> int:
    """Fill the totals from a file of the same key; return how many batches they count."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata["key"] != key:
                return 0
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run again") from error
    totals.load_state_dict(state)
    return int(json.loads(metadata["done"]))
