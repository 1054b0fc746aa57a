"""Where SAEs come from: what every source offers, and the embedded zoo."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from saematch.core.errors import InputError
from saematch.core.files import PACKAGE
from saematch.core.match import Match
from saematch.core.specs import AtLeast1, spec
from saematch.sae.formats.saelens import load_saelens, stated_l0
from saematch.sae.params import SaeParams

ZOO_SAES = PACKAGE / "zoo" / "saes"


@dataclass(frozen=True)
class SaeOffer:
    """One of the SAEs that a release has for a layer."""

    mean_l0: float
    """As the release states it."""
    source: SaeSource
    """Where the SAE is that layer's."""


@runtime_checkable
class SaeSource(Protocol):
    """One SAE a layer."""

    @property
    def name(self) -> str:
        """Return what the SAEs are called in messages and results."""
        ...

    def layers(self) -> list[int]:
        """Return the layers that have an SAE."""
        ...

    def load(self, layer: int) -> SaeParams:
        """Load one layer's SAE; ``InputError`` if it cannot be had."""
        ...

    def truth(self, source: int, target: int) -> Match | None:
        """Return the known match of two layers, None where nobody knows it."""
        ...

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return all SAEs of the same width that there are for a layer, by rising mean L0."""
        ...


@spec("sae")
class ZooSaes:
    """Spec of one of the embedded families."""

    family: str
    """``chain``, ``independent`` or ``mixed``."""
    width: AtLeast1
    """Number of features."""
    sparsity: AtLeast1
    """The mean L0 that training aimed at."""

    @property
    def name(self) -> str:
        """Path inside the zoo."""
        return f"{self.family}/width_{self.width}/l0_{self.sparsity}"

    def layers(self) -> list[int]:
        """Return the layers that have an SAE."""
        return sorted(int(path.name[6:]) for path in self._folder().glob("layer_*"))

    def load(self, layer: int) -> SaeParams:
        """Load one SAE; ``InputError`` if the zoo lacks this family, width, sparsity or layer."""
        return load_saelens(self._folder() / f"layer_{layer}", layer, f"zoo/{self.name}")

    def truth(self, source: int, target: int) -> Match | None:
        """Return the hidden permutation; it is composed where layers lie between."""
        folder = self._folder() / "truth"
        if not folder.exists():
            return None
        steps = [
            Match.load(folder / f"{layer}-{layer + 1}.safetensors")[0]
            for layer in range(source, target)
        ]
        match = steps[0]
        for step in steps[1:]:
            match = match.compose(step)
        return match

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return the family's SAEs of this width and layer, one a sparsity."""
        there = self._folder().parent.glob(f"l0_*/layer_{layer}")
        found = [
            SaeOffer(stated_l0(path), replace(self, sparsity=int(path.parent.name[3:])))
            for path in there
        ]
        return sorted(found, key=lambda offer: offer.mean_l0)

    def _folder(self) -> Path:
        folder = ZOO_SAES / self.name
        if not folder.exists():
            there = sorted(
                f"sae={path.parts[-3]} sae.width={path.parts[-2].removeprefix('width_')} "
                f"sae.sparsity={path.parts[-1].removeprefix('l0_')}"
                for path in ZOO_SAES.glob("*/width_*/l0_*")
            )
            raise InputError(
                f"the zoo has no SAEs with sae={self.family} sae.width={self.width} "
                f"sae.sparsity={self.sparsity}; it has: {'; '.join(there)}"
            )
        return folder
