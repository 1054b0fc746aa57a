"""Where SAEs come from: folders in SAELens' format, and the embedded zoo."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError

from saematch.matching.match import Match
from saematch.sae.params import SaeOrigin, SaeParams

ZOO_SAES = Path(__file__).parent.parent / "zoo" / "saes"


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
        """Load one layer's SAE; ``ValueError`` if it cannot be had."""
        ...

    def truth(self, earlier: int, later: int) -> Match | None:
        """Return the known match of two layers, None where nobody knows it."""
        ...

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return all SAEs of the same width that there are for a layer, by rising mean L0."""
        ...


@dataclass(frozen=True)
class SaelensFolders:
    """Spec of SAEs in SAELens' own format, one folder a layer."""

    path: str
    """Folder of one SAE, with ``{layer}`` in the place of the layer's number."""

    def __post_init__(self) -> None:
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
        """Return the layers that have a folder."""
        before, after = self.path.split("{layer}")
        pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
        paths = glob.glob(f"{glob.escape(before)}*{glob.escape(after)}")
        found = (pattern.fullmatch(path) for path in paths)
        return sorted(int(match[1]) for match in found if match)

    def load(self, layer: int) -> SaeParams:
        """Load one SAE; ``ValueError`` if it is missing, damaged or of a kind not taken."""
        return load_saelens(Path(self.path.replace("{layer}", str(layer))), layer, self.path)

    def truth(self, earlier: int, later: int) -> Match | None:
        """Nobody knows the truth of found SAEs."""
        return None

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return the one SAE that there is."""
        return [SaeOffer(_stated_l0(Path(self.path.replace("{layer}", str(layer)))), self)]


@dataclass(frozen=True)
class ZooSaes:
    """Spec of one of the embedded families."""

    family: str
    """``chain``, ``independent`` or ``mixed``."""
    width: int
    """Number of features."""
    sparsity: int
    """The mean L0 that training aimed at."""

    @property
    def name(self) -> str:
        """Path inside the zoo."""
        return f"{self.family}/width_{self.width}/l0_{self.sparsity}"

    def layers(self) -> list[int]:
        """Return the layers that have an SAE."""
        return SaelensFolders(f"{self._folder()}/layer_{{layer}}").layers()

    def load(self, layer: int) -> SaeParams:
        """Load one SAE; ``ValueError`` if the zoo lacks this family, width, sparsity or layer."""
        return load_saelens(self._folder() / f"layer_{layer}", layer, f"zoo/{self.name}")

    def truth(self, earlier: int, later: int) -> Match | None:
        """Return the hidden permutation; it is composed where layers lie between."""
        folder = self._folder() / "truth"
        if not folder.exists():
            return None
        steps = [
            Match.load(folder / f"{layer}-{layer + 1}.safetensors")[0]
            for layer in range(earlier, later)
        ]
        match = steps[0]
        for step in steps[1:]:
            match = match.compose(step)
        return match

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return the family's SAEs of this width and layer, one a sparsity."""
        there = self._folder().parent.glob(f"l0_*/layer_{layer}")
        found = [
            SaeOffer(_stated_l0(path), replace(self, sparsity=int(path.parent.name[3:])))
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
            raise ValueError(
                f"the zoo has no SAEs with sae={self.family} sae.width={self.width} "
                f"sae.sparsity={self.sparsity}; it has: {'; '.join(there)}"
            )
        return folder


def _stated_l0(folder: Path) -> float:
    """Return the mean L0 that a SAELens folder states, without reading the weights."""
    path = folder / "cfg.json"
    try:
        l0 = float(json.loads(path.read_text(encoding="utf-8"))["metadata"]["l0"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not tell the SAE's mean L0 ({error!r})") from error
    return l0


def load_saelens(folder: Path, layer: int, release: str) -> SaeParams:
    """Load a SAELens folder; ``ValueError`` if it is missing, damaged or of a kind not taken."""
    weights = folder / "sae_weights.safetensors"
    for path in (folder / "cfg.json", weights):
        if not path.exists():
            raise ValueError(f"no SAE for layer {layer}: {path} does not exist")
    from sae_lens import SAE

    try:
        sae = SAE.load_from_disk(folder, device="cpu", dtype="float32")
    except (SafetensorError, json.JSONDecodeError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the SAE in {folder} is damaged or incomplete ({reason}); fetch or train it again"
        ) from error
    content = weights.read_bytes() + (folder / "cfg.json").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return from_saelens(sae, layer, release, folder.name, f"sha256:{digest[:16]}")


def from_saelens(sae: Any, layer: int, release: str, sae_id: str, revision: str) -> SaeParams:
    """Bring a SAELens SAE to the one meaning of ``SaeParams``; refuse what has no such meaning."""
    architecture = sae.cfg.architecture()
    if architecture != "jumprelu":
        raise ValueError(
            f"the SAE {release}/{sae_id} is of architecture {architecture!r}; folding needs the "
            "thresholds of a jumprelu SAE"
        )
    for option in ("normalize_activations", "reshape_activations"):
        if getattr(sae.cfg, option) != "none":
            raise ValueError(
                f"the SAE {release}/{sae_id} has {option}={getattr(sae.cfg, option)!r}; fold the "
                "normalisation into its weights first"
            )
    hook_name = sae.cfg.metadata.hook_name
    if hook_name and hook_name != f"blocks.{layer}.hook_resid_post":
        raise ValueError(
            f"the SAE {release}/{sae_id} reads {hook_name}, but it was taken for layer {layer}, "
            f"which is blocks.{layer}.hook_resid_post; give it the layer that it reads"
        )
    tensors = {name: value.detach().clone() for name, value in sae.state_dict().items()}
    b_enc = tensors["b_enc"]
    if sae.cfg.apply_b_dec_to_input:
        b_enc = b_enc - tensors["b_dec"] @ tensors["W_enc"]
    l0 = sae.cfg.metadata.l0
    origin = SaeOrigin(
        layer=layer,
        release=release,
        sae_id=sae_id,
        revision=revision,
        model_name=sae.cfg.metadata.model_name or "",
        mean_l0=None if l0 is None else float(l0),
        neuronpedia_id=sae.cfg.metadata.neuronpedia_id or None,
    )
    return SaeParams(
        W_enc=tensors["W_enc"],
        b_enc=b_enc,
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        threshold=tensors["threshold"],
        activation="jumprelu",
        origin=origin,
    )
