"""SAEs on disk, one folder or file per layer; their files identify one of five formats."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import NamedTuple

from saematch.core.errors import InputError
from saematch.core.files import expand_home
from saematch.core.match import Match
from saematch.core.specs import spec
from saematch.sae.formats import formats, llama_scope, saelens
from saematch.sae.formats.dictionary_learning import (
    dictionary_learning_l0,
    load_dictionary_learning,
)
from saematch.sae.params import SaeParams
from saematch.sae.sources.source import SaeOffer


@dataclass(frozen=True)
class Format:
    """Functions that read one file format."""

    load: Callable[[Path, int, str], SaeParams]
    """Function that loads the SAE in a folder, given the layer and the release."""
    stated_l0: Callable[[Path], float]
    """Function that returns the mean L0 stated in a folder without reading the weights; raises
    ``InputError`` if none is stated."""


_GEMMA_SCOPE = Format(formats.load_gemma_scope, formats.gemma_scope_l0)
FORMATS = {
    saelens.WEIGHTS: Format(saelens.load_saelens, saelens.stated_l0),
    "params.npz": _GEMMA_SCOPE,
    "params.safetensors": _GEMMA_SCOPE,
    "sae.safetensors": Format(formats.load_sparsify, formats.sparsify_l0),
    "ae.pt": Format(load_dictionary_learning, dictionary_learning_l0),
    llama_scope.WEIGHTS: Format(llama_scope.load_llama_scope, llama_scope.llama_scope_l0),
}
"""Formats by the name of the weights file in the SAE's folder: SAELens, Gemma Scope and Gemma
Scope 2, sparsify, dictionary_learning, Llama Scope."""


LISTED = 8
"""Largest number of files or folders that a message lists."""


class _Fit(NamedTuple):
    """A folder or file that matches ``sae.path``."""

    layer: int
    narrowed: str
    """Its path with ``{layer}`` in place of the layer's number."""
    path: Path


@spec("sae")
class SaeFolders:
    """Spec of SAEs on disk."""

    path: str
    """Folder or weights file of an SAE, with ``{layer}`` in place of the layer's number. ``*``
    matches other parts that differ between layers. ``{layer}`` matches all digits of a number,
    including leading zeros."""
    shift: int = 0
    """Difference between the number in the path and the layer: 1 if the SAE reads ``resid_pre``,
    which is the output of the previous block."""

    def __post_init__(self) -> None:
        expand_home(self, "path")
        if self.path.count("{layer}") != 1:
            raise InputError(
                f"sae.path={self.path!r} must contain {{layer}} once, in place of the layer's "
                "number, as in 'my_saes/layer_{layer}'"
            )
        if re.search(r"[0-9]\{layer\}|\{layer\}[0-9]", self.path):
            raise InputError(
                f"sae.path={self.path!r} has a digit next to {{layer}}, which matches all "
                "digits of a number, including leading zeros; remove the digit"
            )

    @property
    def name(self) -> str:
        """Return the path."""
        return self.path

    def layers(self) -> list[int]:
        """Return the layers that have a folder or file."""
        return sorted({fit.layer for fit in self._fits() if fit.layer >= 0})

    def load(self, layer: int) -> SaeParams:
        """Load one SAE.

        Raises ``InputError`` if it is missing, damaged or not supported, or if several match.
        """
        fitting = self._fits_at(layer)
        if len(fitting) > 1:
            shown = ", ".join(str(fit.path) for fit in fitting[:LISTED])
            more = ", ..." if len(fitting) > LISTED else ""
            raise InputError(
                f"{len(fitting)} SAEs match sae.path={self.path} at layer {layer}: {shown}{more}; "
                "narrow the path until one matches, or use them all with selection=every_sparsity"
            )
        folder = _folder(fitting[0].path)
        return _format(folder).load(folder, layer, self.path)

    def truth(self, source: int, target: int) -> Match | None:
        """Return None: the true match is unknown."""
        return None

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return every SAE that matches the path, sorted by mean L0."""
        offers = []
        for fit in self._fits_at(layer):
            folder = _folder(fit.path)
            source = replace(self, path=fit.narrowed)
            offers.append(SaeOffer(_format(folder).stated_l0(folder), source))
        return sorted(offers, key=lambda offer: offer.mean_l0)

    def _fits_at(self, layer: int) -> list[_Fit]:
        """Return the matches at a layer, sorted by path."""
        fitting = [fit for fit in self._fits() if fit.layer == layer]
        if not fitting:
            layers = ", ".join(map(str, self.layers()))
            if not layers:
                raise InputError(f"sae.path={self.path!r} matches no SAE: {self._nearest()}")
            raise InputError(
                f"no SAE for layer {layer}: "
                f"{self.path.replace('{layer}', str(layer + self.shift))} does not exist; layers "
                f"that exist: {layers}"
            )
        return sorted(fitting, key=lambda fit: fit.path)

    def _nearest(self) -> str:
        """Return what the deepest existing folder of the path contains, similar names first."""
        whole = Path(self.path).expanduser()
        folder = next(path for path in whole.parents if path.is_dir() and "{" not in str(path))
        sought = whole.relative_to(folder).parts[0]
        names = sorted(path.name for path in folder.iterdir())
        shown = difflib.get_close_matches(sought, names, LISTED, cutoff=0.0)
        more = ", ..." if len(names) > LISTED else ""
        return f"the folder {folder} contains {', '.join(shown) or 'nothing'}{more}"

    def _fits(self) -> Iterator[_Fit]:
        """Yield every match; ``InputError`` if a path can be read as two layers."""
        whole = str(Path(self.path).expanduser())
        stars = (part if part == "*" else glob.escape(part) for part in re.split(r"(\*)", whole))
        for path in glob.glob("".join(stars).replace("{layer}", "*")):
            if Path(path).is_dir() or _weights_name(path):
                readings = {fit.layer: fit for fit in self._readings(whole, path)}
                if len(readings) > 1:
                    raise InputError(
                        f"sae.path={self.path}: {path} can be read as layer "
                        f"{' or '.join(map(str, sorted(readings)))}; replace the * by more of "
                        "the name"
                    )
                yield from readings.values()

    def _readings(self, whole: str, path: str) -> Iterator[_Fit]:
        """Yield a path once for each number in it that ``{layer}`` can match."""
        before, after = (
            re.compile("[^/]*".join(map(re.escape, part.split("*"))))
            for part in whole.split("{layer}")
        )
        for number in re.finditer("[0-9]+", path):
            head, tail = path[: number.start()], path[number.end() :]
            if before.fullmatch(head) and after.fullmatch(tail):
                yield _Fit(int(number[0]) - self.shift, f"{head}{{layer}}{tail}", Path(path))


def _weights_name(path: str | Path) -> str | None:
    """Return the name in ``FORMATS`` that a path ends in; None if there is none."""
    return next((name for name in FORMATS if PurePath(path).match(name)), None)


def _folder(path: Path) -> Path:
    """Return the folder of the SAE whose folder or weights file is ``path``."""
    name = None if path.is_dir() else _weights_name(path)
    return path if name is None else path.parents[len(PurePath(name).parts) - 1]


def _format(folder: Path) -> Format:
    names = [name for name in FORMATS if (folder / name).exists()]
    if len(names) != 1:
        present = " and ".join(names) or "none of them"
        raise InputError(
            f"{folder} must contain exactly one of {', '.join(FORMATS)}, but contains {present}"
        )
    return FORMATS[names[0]]
