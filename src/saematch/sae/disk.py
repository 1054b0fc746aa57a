"""SAEs on disk, one folder or file a layer, in any of four formats told by their files."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from saematch.files import expand_home
from saematch.matching.match import Match
from saematch.sae import formats, saelens
from saematch.sae.dictionary_learning import dictionary_learning_l0, load_dictionary_learning
from saematch.sae.params import SaeParams
from saematch.sae.source import SaeOffer


@dataclass(frozen=True)
class Format:
    """How SAEs of one kind are read."""

    load: Callable[[Path, int, str], SaeParams]
    """Takes the folder, the layer and the release."""
    stated_l0: Callable[[Path], float]
    """Returns the mean L0 that the folder states, without reading the weights; ``ValueError`` if
    it states none."""


_GEMMA_SCOPE = Format(formats.load_gemma_scope, formats.gemma_scope_l0)
FORMATS = {
    saelens.WEIGHTS: Format(saelens.load_saelens, saelens.stated_l0),
    "params.npz": _GEMMA_SCOPE,
    "params.safetensors": _GEMMA_SCOPE,
    "sae.safetensors": Format(formats.load_sparsify, formats.sparsify_l0),
    "ae.pt": Format(load_dictionary_learning, dictionary_learning_l0),
}
"""By the name of the file of weights: SAELens, Gemma Scope and its second edition, sparsify,
dictionary_learning."""


@dataclass(frozen=True)
class SaeFolders:
    """Spec of SAEs on disk."""

    path: str
    """Folder of one SAE, or its file of weights, with ``{layer}`` in the place of the layer's
    number and perhaps ``*`` for what else differs from layer to layer."""
    shift: int = 0
    """The number in the path is the layer plus this: 1 where the SAE reads ``resid_pre``, which is
    what the block before gives."""

    def __post_init__(self) -> None:
        expand_home(self, "path")
        if self.path.count("{layer}") != 1:
            raise ValueError(
                f"sae.path={self.path!r} must hold {{layer}} once, in the place of the layer's "
                "number, as in 'my_saes/layer_{layer}'"
            )

    @property
    def name(self) -> str:
        """The path itself."""
        return self.path

    def layers(self) -> list[int]:
        """Return the layers that have a folder or file."""
        return sorted({layer for layer, _, _ in self._found() if layer >= 0})

    def load(self, layer: int) -> SaeParams:
        """Load one SAE; ``ValueError`` if it is missing, damaged, of a kind not taken, or several
        fit the path."""
        fitting = self._at(layer)
        if len(fitting) > 1:
            shown = ", ".join(map(str, list(fitting.values())[:8]))
            raise ValueError(
                f"{len(fitting)} SAEs fit sae.path={self.path} at layer {layer}: {shown}"
                f"{', ...' if len(fitting) > 8 else ''}; narrow the path until one fits, or take "
                "them all with selection=every_sparsity"
            )
        ((_, path),) = fitting.items()
        folder = path if path.is_dir() else path.parent
        return _format(folder).load(folder, layer, self.path)

    def truth(self, earlier: int, later: int) -> Match | None:
        """Nobody knows the truth of found SAEs."""
        return None

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return every SAE that fits the path, by rising mean L0."""
        found = []
        for narrowed, path in self._at(layer).items():
            folder = path if path.is_dir() else path.parent
            found.append(SaeOffer(_format(folder).stated_l0(folder), replace(self, path=narrowed)))
        return sorted(found, key=lambda offer: offer.mean_l0)

    def _at(self, layer: int) -> dict[str, Path]:
        """Return what fits at a layer, by its path with ``{layer}`` in it."""
        fitting = {narrowed: path for at, narrowed, path in self._found() if at == layer}
        if not fitting:
            there = ", ".join(map(str, self.layers())) or "none"
            raise ValueError(
                f"no SAE for layer {layer}: "
                f"{self.path.replace('{layer}', str(layer + self.shift))} does not exist; layers "
                f"that do: {there}"
            )
        return dict(sorted(fitting.items()))

    def _found(self) -> Iterator[tuple[int, str, Path]]:
        """Yield layer, path with ``{layer}`` in it, and path of everything that fits."""
        parts = re.split(r"(\{layer\}|\*)", self.path)
        holes = {"{layer}": r"(\d+)", "*": r"[^/]*"}
        pattern = re.compile("".join(holes.get(part, re.escape(part)) for part in parts))
        stars = ("*" if part in holes else glob.escape(part) for part in parts)
        for path in glob.glob("".join(stars)):
            told = pattern.fullmatch(path)
            if told and (Path(path).is_dir() or Path(path).name in FORMATS):
                narrowed = f"{path[: told.start(1)]}{{layer}}{path[told.end(1) :]}"
                yield int(told[1]) - self.shift, narrowed, Path(path)


def _format(folder: Path) -> Format:
    there = [name for name in FORMATS if (folder / name).exists()]
    if len(there) != 1:
        held = " and ".join(there) or "none of them"
        raise ValueError(
            f"{folder} is not the folder of one SAE: of {', '.join(FORMATS)} it holds {held}"
        )
    return FORMATS[there[0]]
