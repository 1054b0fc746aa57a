"""Sources of SAEs: the protocol of every source, and the embedded zoo."""

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
    """One of a release's SAEs for a layer."""

    mean_l0: float
    """Mean L0 stated by the release."""
    source: SaeSource
    """Source that has this SAE at the layer."""


@runtime_checkable
class SaeSource(Protocol):
    """Protocol of every source: one SAE per layer."""

    @property
    def name(self) -> str:
        """Return the name of the SAEs in messages and results."""
        ...

    def layers(self) -> list[int]:
        """Return the layers that have an SAE."""
        ...

    def load(self, layer: int) -> SaeParams:
        """Load one layer's SAE; ``InputError`` if it is not available."""
        ...

    def truth(self, source: int, target: int) -> Match | None:
        """Return the true match of two layers; None if it is unknown."""
        ...

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return all SAEs of the same width for a layer, sorted by mean L0."""
        ...


@spec("sae")
class ZooSaes:
    """Spec of an embedded family of SAEs."""

    family: str
    """``chain``, ``independent`` or ``mixed``."""
    width: AtLeast1 = 1024
    """Number of features."""
    sparsity: AtLeast1 = 20
    """Target mean L0 of the training."""

    @property
    def name(self) -> str:
        """Return the path inside the zoo."""
        return f"{self.family}/width_{self.width}/l0_{self.sparsity}"

    def layers(self) -> list[int]:
        """Return the layers that have an SAE."""
        return sorted(int(path.name[6:]) for path in self._folder().glob("layer_*"))

    def load(self, layer: int) -> SaeParams:
        """Load one SAE; ``InputError`` if the zoo lacks this family, width, sparsity or layer."""
        return load_saelens(self._folder() / f"layer_{layer}", layer, f"zoo/{self.name}")

    def truth(self, source: int, target: int) -> Match | None:
        """Return the true permutation, composed over the layers in between."""
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
        """Return the family's SAEs of this width and layer, one per sparsity."""
        offers = [
            SaeOffer(stated_l0(path), replace(self, sparsity=int(path.parent.name[3:])))
            for path in self._folder().parent.glob(f"l0_*/layer_{layer}")
        ]
        return sorted(offers, key=lambda offer: offer.mean_l0)

    def _folder(self) -> Path:
        folder = ZOO_SAES / self.name
        if not folder.exists():
            choices = sorted(
                f"sae={path.parts[-3]} sae.width={path.parts[-2].removeprefix('width_')} "
                f"sae.sparsity={path.parts[-1].removeprefix('l0_')}"
                for path in ZOO_SAES.glob("*/width_*/l0_*")
            )
            raise InputError(
                f"the zoo has no SAEs with sae={self.family} sae.width={self.width} "
                f"sae.sparsity={self.sparsity}; it has: {'; '.join(choices)}"
            )
        return folder
