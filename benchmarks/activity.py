"""Measure the rows of ``bench.py`` on activity: recording, and the statistics of one pair."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from measures import Size, random_sae
from measuring import GIB, Measured, in_turn, peak_bytes
from torch import Tensor
from torch.nn.functional import normalize

from saematch.core.pairs import Pair
from saematch.core.store import write
from saematch.matching.objectives.from_activity import FromActivity
from saematch.matching.objectives.pearson import Pearson
from saematch.matching.objectives.written_share import WrittenShare
from saematch.sae.activations import encode
from saematch.sae.codes import CodesRecorder
from saematch.sae.params import SaeParams
from saematch.sae.recorders import Recording

L0 = 70
N_CANDIDATES = 256
PAIR = Pair.of_layers(0, 1)
TOKENS_AT_ONCE = 2048


@dataclass(frozen=True)
class Activity:
    """Random SAEs and hidden states, on which a token has about ``L0`` active features."""

    saes: tuple[SaeParams, SaeParams]
    batches: tuple[tuple[Tensor, Tensor], ...]
    """Hidden states of both SAEs."""

    @classmethod
    def of(cls, size: Size) -> Activity:
        """Return SAEs whose features have frequencies in proportion to ``rank ** -0.5``."""
        sizes = [TOKENS_AT_ONCE] * (size.n_tokens // TOKENS_AT_ONCE) or [size.n_tokens]
        batches = tuple((torch.randn(n, size.d_model), torch.randn(n, size.d_model)) for n in sizes)
        return cls((_sparse_sae(0, size), _sparse_sae(1, size)), batches)

    def encode(self) -> None:
        """Encode all hidden states by both SAEs."""
        for states in self.batches:
            for sae, x in zip(self.saes, states, strict=True):
                encode(sae, x)

    def candidates(self, objective: FromActivity, recording: Recording) -> Any:
        """Return the candidates of the pair."""
        return objective.candidates(PAIR, recording, *self.saes)

    @contextmanager
    def recorded(self) -> Iterator[Recording]:
        """Record the codes of both SAEs into a temporary folder."""
        with TemporaryDirectory() as folder:
            recorder = CodesRecorder(Path(folder), tuple(PAIR))
            paths = []
            for number, states in enumerate(self.batches):
                active = {
                    key: encode(sae, x) for key, sae, x in zip(PAIR, self.saes, states, strict=True)
                }
                forward: Any = SimpleNamespace(active=active.__getitem__)
                paths.append(Path(folder) / f"{number}.safetensors")
                write(paths[-1], recorder.record(forward))
            yield Recording({"random": (tuple(paths),)})


def _sparse_sae(layer: int, size: Size) -> SaeParams:
    sae = random_sae(layer, size)
    weights = (1 + torch.randperm(size.n_features).double()) ** -0.5
    shares = (L0 * weights / weights.sum()).clamp(max=0.5)
    threshold = torch.special.ndtri(1 - shares).float()
    W_enc = normalize(sae.W_enc, dim=0)
    return replace(sae, W_enc=W_enc, b_enc=torch.zeros_like(sae.b_enc), threshold=threshold)


def pearson(size: Size) -> Measured:
    """Measure recording and the correlations of one pair against encoding alone."""
    return _seconds(size, Pearson(N_CANDIDATES))


def written_share(size: Size) -> Measured:
    """Measure recording and the written shares of one pair against encoding alone."""
    return _seconds(size, WrittenShare(N_CANDIDATES))


@torch.inference_mode()
def _seconds(size: Size, objective: FromActivity) -> Measured:
    work = Activity.of(size)

    def ours() -> None:
        with work.recorded() as recording:
            work.candidates(objective, recording)

    return in_turn(ours, work.encode, 1)


@torch.inference_mode()
def memory(size: Size) -> Measured:
    """Measure the memory that written shares of one pair need in addition to the SAEs, in GiB."""
    work = Activity.of(size)
    with work.recorded() as recording:
        peak = peak_bytes(lambda: work.candidates(WrittenShare(N_CANDIDATES), recording)) / GIB
    return Measured(peak, 1.0, peak, "GiB")
