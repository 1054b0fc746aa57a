"""SAEs of the releases that SAELens knows, by name."""

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
    """Spec of one SAE a layer of a release in SAELens' registry.

    In every template ``{width}`` stands for the width, ``{site}`` for the site and ``{hook}`` for
    what ``hooks`` calls the site.
    """

    release: str
    """Name of the release."""
    id_template: str
    """Id inside the release, with ``{layer}`` in the place of the layer's number."""
    offers_release: str | None = None
    """Release that has the other sparsities; None if they are in the same one."""
    offers_id: str | None = None
    """Ids of those, with ``{layer}`` and ``{l0}``; None if there is nothing to choose from."""
    l0: str | int | float | Sequence[int | float] | None = None
    """Which of those to take: the word in the place of ``{l0}``; or a mean L0, or one a layer
    from 0 on, to which the stated one is nearest by ratio. None is the SAE of ``id_template``."""
    shift: int = 0
    """The number in the id is the layer plus this: 1 where the SAE reads ``resid_pre``, which is
    ``resid_post`` of the layer before."""
    width: str = ""
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
                    f"sae.{name}={template!r}: {{}} may hold layer, width, site and hook, and in "
                    "sae.offers_id l0"
                ) from error
            if template and any(filled.count(place) != 1 for place in places):
                raise InputError(f"sae.{name}={template!r} must hold {' and '.join(places)} once")
        if self.l0 is not None and self.offers_id is None:
            raise InputError(
                f"sae.l0={self.l0}: {self.release} has nothing to choose from, unless sae.offers_id"
                " names its ids, with {layer} and {l0}"
            )
        wanted = [] if self.l0 is None or isinstance(self.l0, str) else _each(self.l0)
        if any(l0 <= 0 for l0 in wanted):
            raise InputError(f"sae.l0={self.l0}: a mean L0 is above 0")

    @property
    def name(self) -> str:
        """Release and id, and how the SAE of a layer is chosen."""
        if self.l0 is None or isinstance(self.l0, str):
            name, template = self._taken()
            return f"{name}/{template}"
        aim = "one of each layer" if isinstance(self.l0, Sequence) else f"{self.l0:g}"
        return f"{self._offering()}/{self._filled(self.offers_id or '')} of mean L0 near {aim}"

    def layers(self) -> list[int]:
        """Return the layers that the release has an SAE for."""
        if self.l0 is None or isinstance(self.l0, str):
            return sorted(self._found(*self._taken()))
        found = self._found(self._offering(), self._filled(self.offers_id or ""))
        return sorted(n for n in found if not isinstance(self.l0, Sequence) or n < len(self.l0))

    def load(self, layer: int) -> SaeParams:
        """Load one SAE; ``InputError`` if the registry lacks it or it cannot be fetched."""
        name, sae_id = self.chosen(layer)
        known = registry.release(name)
        entry = known.sae(sae_id)
        if isinstance(self.l0, Sequence) and entry.mean_l0 != self.l0[layer]:
            asked = self.l0[layer]
            log.warning("layer %d: no SAE has the mean L0 %g, so %s is taken", layer, asked, sae_id)
        fetched = fetch(known, sae_id)
        params = from_saelens(
            fetched.sae, SaeOrigin(layer, known.repo, entry.path, fetched.revision)
        )
        stated: dict[str, Any] = {"neuronpedia_id": explained_as(name, sae_id, layer + self.shift)}
        if params.origin.mean_l0 is None and entry.mean_l0 is not None:
            stated["mean_l0"] = entry.mean_l0
        return replace(params, origin=replace(params.origin, **stated))

    def truth(self, source: int, target: int) -> Match | None:
        """Nobody knows the truth of released SAEs."""
        return None

    def offers(self, layer: int) -> list[SaeOffer]:
        """Return the release's SAEs of every sparsity, by rising mean L0."""
        if self.offers_id is None:
            name, sae_id = self.chosen(layer)
            return [SaeOffer(registry.release(name).sae(sae_id).mean_l0 or 0.0, self)]
        name = self._offering()
        found = []
        for word, l0 in self._offered(layer).items():
            template = self._filled(self.offers_id, l0=word)
            found.append(SaeOffer(l0, ReleasedSaes(name, template, shift=self.shift)))
        return sorted(found, key=lambda offer: offer.mean_l0)

    def chosen(self, layer: int) -> tuple[str, str]:
        """Return the release and the id of a layer's SAE; ``InputError`` if there is none."""
        number = str(layer + self.shift)
        if self.l0 is None or isinstance(self.l0, str):
            name, template = self._taken()
            sae_id = template.replace("{layer}", number)
            registry.release(name).sae(sae_id)
            return name, sae_id
        offered = self._offered(layer)
        if not offered or (isinstance(self.l0, Sequence) and layer >= len(self.l0)):
            raise InputError(f"there is no SAE for layer {layer} among {self.name}")
        l0 = float(self.l0[layer] if isinstance(self.l0, Sequence) else self.l0)
        word = min(offered, key=lambda word: abs(math.log(offered[word] / l0)))
        sae_id = self._filled(self.offers_id or "", l0=word).replace("{layer}", number)
        return self._offering(), sae_id

    def _taken(self) -> tuple[str, str]:
        """Return the release and the template of ids where one id a layer is asked for."""
        if self.l0 is None:
            return self._filled(self.release), self._filled(self.id_template)
        return self._offering(), self._filled(self.offers_id or "", l0=str(self.l0))

    def _offering(self) -> str:
        return self._filled(self.offers_release or self.release)

    def _offered(self, layer: int) -> dict[str, float]:
        """Return the mean L0 of a layer's SAEs by what is in the place of ``{l0}`` in their ids."""
        known = registry.release(self._offering())
        words = self._found(known.name, self._filled(self.offers_id or "")).get(layer, {})
        stated = {word: known.sae(sae_id).mean_l0 for word, sae_id in words.items()}
        return {word: l0 for word, l0 in stated.items() if l0}

    def _filled(self, template: str, l0: str = "{l0}") -> str:
        hook = self.hooks.get(self.site, self.site)
        return template.format(layer="{layer}", l0=l0, width=self.width, site=self.site, hook=hook)

    def _found(self, name: str, template: str) -> dict[int, dict[str, str]]:
        """Return by layer the ids that a template stands for, by what is in the place of ``{l0}``.

        A release that has none of them is refused.
        """
        known = registry.release(name)
        pattern = re.escape(template).replace(r"\{layer\}", r"(?P<layer>\d+)")
        pattern = pattern.replace(r"\{l0\}", r"(?P<l0>[A-Za-z\d.]+)")
        found: dict[int, dict[str, str]] = {}
        for sae_id in known.saes:
            match = re.fullmatch(pattern, sae_id)
            layer = int(match["layer"]) - self.shift if match else -1
            if match and layer >= 0:  # the embedding, where a release counts it as a layer, is none
                found.setdefault(layer, {})[match.groupdict().get("l0") or ""] = sae_id
        if not found:
            known.sae(template)
        return found


def _each(l0: int | float | Sequence[int | float]) -> Sequence[int | float]:
    return l0 if isinstance(l0, Sequence) else [l0]
