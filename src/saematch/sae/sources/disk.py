"""SAEs on disk, one folder or file a layer, in any of five formats told by their files."""

from __future__ import annotations

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
    """How SAEs of one kind are read."""

    load: Callable[[Path, int, str], SaeParams]
    """Takes the folder, the layer and the release."""
    stated_l0: Callable[[Path], float]
    """Returns the mean L0 that the folder states, without reading the weights; ``InputError`` if
    it states none."""


_GEMMA_SCOPE = Format(formats.load_gemma_scope, formats.gemma_scope_l0)
FORMATS = {
    saelens.WEIGHTS: Format(saelens.load_saelens, saelens.stated_l0),
    "params.npz": _GEMMA_SCOPE,
    "params.safetensors": _GEMMA_SCOPE,
    "sae.safetensors": Format(formats.load_sparsify, formats.sparsify_l0),
    "ae.pt": Format(load_dictionary_learning, dictionary_learning_l0),
    llama_scope.WEIGHTS: Format(llama_scope.load_llama_scope, llama_scope.llama_scope_l0),
}
"""By the file of weights below the SAE's folder: SAELens, Gemma Scope and its second edition,
sparsify, dictionary_learning, Llama Scope."""


class _Fit(NamedTuple):
    """What fits a path."""

    layer: int
    narrowed: str
    """Its path with ``{layer}`` in the place of the number."""
    path: Path


@spec("sae")
class SaeFolders:
    """Spec of SAEs on disk."""

    path: str
    """Folder of one SAE, or its file of weights, with ``{layer}`` in the place of the layer's
    number and perhaps ``*`` for what else differs from layer to layer. The number is a whole one:
    ``{layer}`` and ``*`` never share the digits of a number. It may have leading zeros."""
    shift: int = 0
    """The number in the path is the layer plus this: 1 where the SAE reads ``resid_pre``, which is
    what the block before gives."""

    def __post_init__(self) -> None:
        expand_home(self, "path")
        if self.path.count("{layer}") != 1:
            raise InputError(
                f"sae.path={self.path!r} must hold {{layer}} once, in the place of the layer's "
                "number, as in 'my_saes/layer_{layer}'"
            )
        if re.search(r"[0-9]\{layer\}|\{layer\}[0-9]", self.path):
            raise InputError(
                f"sae.path={self.path!r} has a digit next to {{layer}}, which stands for a whole "
                "number, leading zeros included; take the digit out"
            )

    @property
    def name(self) -> str:
        """The path itself."""
        return self.path

    def layers(self) -> list[int]:
        """Return the layers that have a folder or file."""
        return sorted({fit.layer for fit in self._fits() if fit.layer >= 0})

    def load(self, layer: int) -> SaeParams:
        """Load one SAE; ``InputError`` if it is missing, damaged, of a kind not taken, or several
        fit the path."""
        fitting = self._at(layer)
        if len(fitting) > 1:
            shown = ", ".join(str(fit.path) for fit in fitting[:8])
            raise InputError(
                f"{len(fitting)} SAEs fit sae.path={self.path} at layer {layer}: {shown}"
                f"{', ...' if len(fitting) > 8 else ''}; narrow the path until one fits, or take "
                "them all with selection=every_sparsity"
            )
        folder = _folder(fitting[0].path)
        return _format(folder).load(folder, layer, self.path)

    def truth(self, source: int, target: int) -> Match | None:
        """Nobody knows the truth of found SAEs."""
        return None

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return every SAE that fits the path, by rising mean L0."""
        found = []
        for fit in self._at(layer):
            folder = _folder(fit.path)
            source = replace(self, path=fit.narrowed)
            found.append(SaeOffer(_format(folder).stated_l0(folder), source))
        return sorted(found, key=lambda offer: offer.mean_l0)

    def _at(self, layer: int) -> list[_Fit]:
        """Return what fits at a layer, by path."""
        fitting = [fit for fit in self._fits() if fit.layer == layer]
        if not fitting:
            there = ", ".join(map(str, self.layers())) or "none"
            raise InputError(
                f"no SAE for layer {layer}: "
                f"{self.path.replace('{layer}', str(layer + self.shift))} does not exist; layers "
                f"that do: {there}"
            )
        return sorted(fitting, key=lambda fit: fit.path)

    def _fits(self) -> Iterator[_Fit]:
        """Yield everything that fits; ``InputError`` where a path can be read as two layers."""
        whole = str(Path(self.path).expanduser())
        stars = (part if part == "*" else glob.escape(part) for part in re.split(r"(\*)", whole))
        for path in glob.glob("".join(stars).replace("{layer}", "*")):
            if Path(path).is_dir() or _weights_name(path):
                readings = {fit.layer: fit for fit in self._readings(whole, path)}
                if len(readings) > 1:
                    raise InputError(
                        f"sae.path={self.path}: {path} can be read as layer "
                        f"{' or '.join(map(str, sorted(readings)))}; put more of the name into the "
                        "path in the place of *"
                    )
                yield from readings.values()

    def _readings(self, whole: str, path: str) -> Iterator[_Fit]:
        """Yield a path once for each whole number in it that ``{layer}`` can stand for."""
        before, after = (
            re.compile("[^/]*".join(map(re.escape, part.split("*"))))
            for part in whole.split("{layer}")
        )
        for number in re.finditer("[0-9]+", path):
            head, tail = path[: number.start()], path[number.end() :]
            if before.fullmatch(head) and after.fullmatch(tail):
                yield _Fit(int(number[0]) - self.shift, f"{head}{{layer}}{tail}", Path(path))


def _weights_name(path: str | Path) -> str | None:
    """Return which file of weights a path is, None if it is none."""
    return next((name for name in FORMATS if PurePath(path).match(name)), None)


def _folder(path: Path) -> Path:
    """Return the folder of an SAE, of which the path is the folder or the file of weights."""
    name = None if path.is_dir() else _weights_name(path)
    return path if name is None else path.parents[len(PurePath(name).parts) - 1]


def _format(folder: Path) -> Format:
    there = [name for name in FORMATS if (folder / name).exists()]
    if len(there) != 1:
        held = " and ".join(there) or "none of them"
        raise InputError(
            f"{folder} is not the folder of one SAE: of {', '.join(FORMATS)} it holds {held}"
        )
    return FORMATS[there[0]]
