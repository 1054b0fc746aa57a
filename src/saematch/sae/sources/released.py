"""SAEs of the releases in SAELens' registry, by name."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any

from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.specs import spec
from saematch.sae.formats.saelens import from_saelens
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.sae.sources import registry
from saematch.sae.sources.hub import fetch
from saematch.sae.sources.registry import explained_as
from saematch.sae.sources.source import SaeOffer

log = logging.getLogger(__name__)


@spec("sae")
class ReleasedSaes:
    """Spec of one SAE per layer from a release in SAELens' registry.

    In every template, ``{width}`` is replaced by the width, ``{site}`` by the site and ``{hook}``
    by the name of the site in ``hooks``.
    """

    release: str
    """Name of the release."""
    id_template: str
    """Id in the release, with ``{layer}`` in place of the layer's number."""
    offers_release: str | None = None
    """Release with the other sparsities; None if it is the same release."""
    offers_id: str | None = None
    """Ids of the other sparsities, with ``{layer}`` and ``{l0}``; None if there are none."""
    l0: str | int | float | Sequence[int | float] | None = None
    """Choice among the sparsities: the text that replaces ``{l0}``, or a mean L0 (one, or one per
    layer from 0), which chooses the SAE whose stated mean L0 is nearest by ratio. None chooses the
    SAE of ``id_template``."""
    shift: int = 0
    """Difference between the number in the id and the layer: 1 if the SAE reads ``resid_pre``,
    which is ``resid_post`` of the previous layer."""
    width: str | int = ""
    site: str = ""
    hooks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.hooks and self.site not in self.hooks:
            raise InputError(f"sae.site={self.site} is not one of {', '.join(self.hooks)}")
        needed = {"release": (), "id_template": ("{layer}",), "offers_release": (),
                  "offers_id": ("{layer}", "{l0}")}  # fmt: skip
        for name, places in needed.items():
            template = getattr(self, name)
            try:
                filled = self._filled(template or "")
            except (KeyError, IndexError, ValueError) as error:
                raise InputError(
                    f"sae.{name}={template!r}: {{}} may contain layer, width, site and hook, "
                    "and in sae.offers_id also l0"
                ) from error
            if template and any(filled.count(place) != 1 for place in places):
                raise InputError(
                    f"sae.{name}={template!r} must contain {' and '.join(places)} once"
                )
        if self.l0 is not None and self.offers_id is None:
            raise InputError(
                f"sae.l0={self.l0}: {self.release} has no SAEs to choose from, unless sae.offers_id"
                " gives their ids, with {layer} and {l0}"
            )
        targets = [] if self.l0 is None or isinstance(self.l0, str) else _by_layer(self.l0)
        if any(l0 <= 0 for l0 in targets):
            raise InputError(f"sae.l0={self.l0}: a mean L0 must be above 0")

    @property
    def name(self) -> str:
        """Return the release, the id and how the SAE of a layer is chosen."""
        if self.l0 is None or isinstance(self.l0, str):
            name, template = self._only_choice()
            return f"{name}/{template}"
        aim = "one per layer" if isinstance(self.l0, Sequence) else f"{self.l0:g}"
        return f"{self._offering()}/{self._filled(self.offers_id or '')} of mean L0 near {aim}"

    def layers(self) -> list[int]:
        """Return the layers for which the release has an SAE."""
        if self.l0 is None or isinstance(self.l0, str):
            return sorted(self._ids(*self._only_choice()))
        layers = self._ids(self._offering(), self._filled(self.offers_id or ""))
        return sorted(n for n in layers if not isinstance(self.l0, Sequence) or n < len(self.l0))

    def load(self, layer: int) -> SaeParams:
        """Load one SAE; ``InputError`` if the registry lacks it or it cannot be fetched."""
        name, sae_id = self.chosen(layer)
        release = registry.release(name)
        entry = release.sae(sae_id)
        if isinstance(self.l0, Sequence) and entry.mean_l0 != self.l0[layer]:
            target = self.l0[layer]
            log.warning("layer %d: no SAE has mean L0 %g; using %s", layer, target, sae_id)
        fetched = fetch(release, sae_id)
        params = from_saelens(
            fetched.sae, SaeOrigin(layer, release.repo, entry.path, fetched.revision)
        )
        stated: dict[str, Any] = {"neuronpedia_id": explained_as(name, sae_id, layer + self.shift)}
        if params.origin.mean_l0 is None and entry.mean_l0 is not None:
            stated["mean_l0"] = entry.mean_l0
        return replace(params, origin=replace(params.origin, **stated))

    def truth(self, source: int, target: int) -> Match | None:
        """Return None: the true match is unknown."""
        return None

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return the release's SAEs of every sparsity, sorted by mean L0."""
        if self.offers_id is None:
            name, sae_id = self.chosen(layer)
            return [SaeOffer(registry.release(name).sae(sae_id).mean_l0 or 0.0, self)]
        name = self._offering()
        offers = []
        for word, l0 in self._offered(layer).items():
            template = self._filled(self.offers_id, l0=word)
            offers.append(SaeOffer(l0, ReleasedSaes(name, template, shift=self.shift)))
        return sorted(offers, key=lambda offer: offer.mean_l0)

    def chosen(self, layer: int) -> tuple[str, str]:
        """Return the release and the id of a layer's SAE; ``InputError`` if there is none."""
        number = str(layer + self.shift)
        if self.l0 is None or isinstance(self.l0, str):
            name, template = self._only_choice()
            sae_id = template.replace("{layer}", number)
            registry.release(name).sae(sae_id)
            return name, sae_id
        offered = self._offered(layer)
        if not offered or (isinstance(self.l0, Sequence) and layer >= len(self.l0)):
            raise InputError(f"{self.name} has no SAE for layer {layer}")
        l0 = float(self.l0[layer] if isinstance(self.l0, Sequence) else self.l0)
        word = min(offered, key=lambda word: abs(math.log(offered[word] / l0)))
        sae_id = self._filled(self.offers_id or "", l0=word).replace("{layer}", number)
        return self._offering(), sae_id

    def _only_choice(self) -> tuple[str, str]:
        """Return the release and the template of ids if the settings leave one id per layer."""
        if self.l0 is None:
            return self._filled(self.release), self._filled(self.id_template)
        return self._offering(), self._filled(self.offers_id or "", l0=str(self.l0))

    def _offering(self) -> str:
        return self._filled(self.offers_release or self.release)

    def _offered(self, layer: int) -> dict[str, float]:
        """Return the mean L0 of a layer's SAEs, by the text in place of ``{l0}`` in their ids."""
        release = registry.release(self._offering())
        words = self._ids(release.name, self._filled(self.offers_id or "")).get(layer, {})
        stated = {word: release.sae(sae_id).mean_l0 for word, sae_id in words.items()}
        return {word: l0 for word, l0 in stated.items() if l0}

    def _filled(self, template: str, l0: str = "{l0}") -> str:
        hook = self.hooks.get(self.site, self.site)
        return template.format(layer="{layer}", l0=l0, width=self.width, site=self.site, hook=hook)

    def _ids(self, name: str, template: str) -> dict[int, dict[str, str]]:
        """Return the ids that match a template: by layer, then by the text in place of ``{l0}``.

        Raises ``InputError`` if no id of the release matches.
        """
        release = registry.release(name)
        pattern = re.escape(template).replace(r"\{layer\}", r"(?P<layer>\d+)")
        pattern = pattern.replace(r"\{l0\}", r"(?P<l0>[A-Za-z\d.]+)")
        ids: dict[int, dict[str, str]] = {}
        for sae_id in release.saes:
            match = re.fullmatch(pattern, sae_id)
            layer = int(match["layer"]) - self.shift if match else -1
            if match and layer >= 0:  # below 0 is the embedding, which some releases count
                ids.setdefault(layer, {})[match.groupdict().get("l0") or ""] = sae_id
        if not ids:
            release.sae(template)
        return ids


def _by_layer(l0: int | float | Sequence[int | float]) -> Sequence[int | float]:
    return l0 if isinstance(l0, Sequence) else [l0]
