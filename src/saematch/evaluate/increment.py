"""Fit the strategies ``increment`` and ``increment_free`` to calibration texts.

Both predict the change of the hidden state from the source layer to the target layer:

``increment``       ``x_hat = x_s + sum_i g_i f_i v_i`` with ``v_i = sum_j w_ij e_j``
``increment_free``  ``x_hat = x_s + sum_i f_i V_i``

``f_i`` is the activation of source feature ``i`` in units of its decoder norm, ``w_ij`` a weight of
the match, and ``e_j`` the unit decoder vector of target feature ``j``. Ridge regression on the
calibration texts of all text sets determines the gains ``g_i`` and the free vectors ``V_i``; there
is no intercept. Features that are never active on these texts get gain 0. These definitions are our
own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from safetensors.torch import load_file
from scipy.sparse import csr_array
from torch import Tensor

from saematch.core.code import code_of
from saematch.core.files import hashed
from saematch.core.match import Match
from saematch.core.pairs import Pair
from saematch.core.store import is_kept, write
from saematch.evaluate.changes import ChangeRecorder, Changes
from saematch.evaluate.ridge import Moments, Regression
from saematch.sae.folding import fold_scale
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Recording
from saematch.sae.suites import SaeShelf

UNITS = "decoder_norm"
"""Fold whose units the activations have: each counts by the norm of its contribution."""
FIT = "fit"
"""Name of the tensor in a file of a fit."""


@dataclass(frozen=True)
class Increments:
    """Fits to the calibration texts. Each fit is kept in a file, so that runs share it."""

    saes: SaeShelf
    folder: Path
    """Folder for the recording and the fits."""
    texts: TextPass | None
    """Pass over the calibration texts; None if there is no pair."""
    pairs: tuple[Pair, ...]
    ridge: float
    _sums: dict[Pair, tuple[Changes, Moments]] = field(default_factory=dict, init=False, repr=False)
    """Changes of the last pair and their sums, since the fits of a pair follow each other."""

    @cached_property
    def recording(self) -> Recording:
        """The recording of all pairs, from one pass over the calibration texts."""
        assert self.texts is not None
        recorder = ChangeRecorder(self.folder, self.pairs)
        return self.texts.record(self.saes, {"increment": recorder}, "calibrate")["increment"]

    def with_gains(self, pair: Pair, match: Match) -> Match:
        """Return the match with each weight multiplied by the gain of its source feature."""
        path = self._path(pair, match.hash)
        if not is_kept(path):
            self._write(path, pair, match)
        gains = load_file(path)[FIT]
        return replace(match, weights=match.weights * gains[match.rows, 0], certificate=None)

    def free_vectors(self, pair: Pair) -> Path:
        """Return the file of the free vectors; see ``read_free_vectors``."""
        path = self._path(pair, "")
        if not is_kept(path):
            self._write(path, pair, None)
        return path

    def _path(self, pair: Pair, match: str) -> Path:
        files = [path.stem for parts in self.recording.files.values() for p in parts for path in p]
        facts: list[Any] = [code_of(Increments), files, list(pair), match, self.ridge]
        return self.folder / f"{hashed(facts)}.safetensors"

    def _write(self, path: Path, pair: Pair, match: Match | None) -> None:
        """Fit gains, or free vectors without a match, and write them for every source feature."""
        if pair not in self._sums:
            self._sums.clear()
            scale = fold_scale(self.saes[pair.source], UNITS).cpu()
            changes = Changes(self.recording, pair, scale)
            self._sums[pair] = changes, Moments.of(changes)
        changes, moments = self._sums[pair]
        scale = changes.scale
        directions = None if match is None else self.directions(changes, match)
        solution = Regression(changes, moments, directions, self.ridge).solve()
        fit = torch.zeros(len(scale), solution.shape[1], dtype=torch.float64)
        fit[torch.from_numpy(changes.live)] = torch.from_numpy(solution)
        write(path, {FIT: (fit / scale[:, None]).float() if match is None else fit})

    def directions(self, changes: Changes, match: Match) -> Float64[np.ndarray, "n_live d_model"]:
        """Return the weighted sum of the partners' unit decoder vectors for each live feature."""
        target = self.saes[changes.pair.target]
        units = (target.W_dec * fold_scale(target, UNITS)[:, None]).cpu().double().numpy()
        entries = match.weights.numpy(), (match.rows.numpy(), match.columns.numpy())
        weights = csr_array(entries, shape=(match.n_source, match.n_target))
        return weights[changes.live] @ units


def read_free_vectors(path: Path) -> Float[Tensor, "n_source d_model"]:
    """Return the free vector of each source feature, for its activation as the SAE encodes it."""
    return load_file(path)[FIT]
