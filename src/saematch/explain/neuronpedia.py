"""Explanations from Neuronpedia: bulk exports, kept as one Parquet file a source."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow.parquet as pq
from tqdm import tqdm

from saematch.core.errors import InputError
from saematch.core.files import read_json, write_json
from saematch.core.pairs import SaeKey
from saematch.core.specs import spec
from saematch.explain.explanations import Explanation, FeatureKey, Means
from saematch.explain.neuronpedia_web import ELSE, TEXTS, Server, fetch_single, keep_export
from saematch.sae.params import SaeOrigin
from saematch.sae.sources.registry import explained_near
from saematch.sae.suites import Saes, SaeShelf

log = logging.getLogger(__name__)

SOURCE = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@spec("explain")
class NeuronpediaExplanations:
    """Spec of the explanations that Neuronpedia publishes of the very SAEs of a run."""

    on_texts: ClassVar[bool] = False
    asks_llm: ClassVar[bool] = False

    exports: str = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
    """Address of the bucket of bulk exports."""
    api: str = "https://www.neuronpedia.org"
    """Address of the site, which is asked for single features."""
    explainer: str | None = None
    """Take the texts of this explainer model only; None for all."""
    single: int = 50
    """At most so many features of an SAE are fetched one by one when the bulk export lacks them."""
    refresh: bool = False
    """List the exports again, and fetch what has changed."""
    connections: int = 4
    """Batches that are fetched at the same time."""
    retries: int = 6
    """Further attempts at a request that fails, with growing waits between."""
    timeout: float = 60.0
    """Seconds without a byte after which an attempt has failed."""

    def __post_init__(self) -> None:
        for name, least in (("single", 0), ("connections", 1), ("retries", 0), ("timeout", 1)):
            if getattr(self, name) < least:
                raise InputError(f"explain.{name}={getattr(self, name)} must be {least} or more")
        for name in ("exports", "api"):
            if not getattr(self, name).startswith(("http://", "https://")):
                raise InputError(f"explain.{name}={getattr(self, name)!r} must be http(s)://…")

    def server(self, address: str, instead: str) -> Server:
        """Return how an address is asked, with what to do ``instead``."""
        return Server(address, self.connections, self.retries, self.timeout, instead)

    def check(self, saes: Saes) -> None:
        """Refuse an SAE that Neuronpedia does not explain: ``InputError``, with the one it does."""
        for key, sae in SaeShelf.of(saes).facts.items():
            source = sae.origin.neuronpedia_id
            if source is None:
                raise InputError(_unexplained(key, sae.origin))
            if not SOURCE.fullmatch(source):
                raise InputError(
                    f"the SAE of {key.name} has neuronpedia_id={source!r}, no model/source"
                )

    def recorder(self, saes: Saes, means: Means) -> None:
        """Return None: nothing is recorded."""

    def open(self, saes: Saes, means: Means) -> NeuronpediaTexts:
        """Fetch what is not kept yet of each source's export.

        A fetch that was killed goes on where it stood. ``InputError`` for an SAE that ``check``
        refuses, an address that cannot be reached, a limit that outlasts the retries, a batch that
        stays broken, an export that is empty, of another SAE or without ``explainer``.
        """
        self.check(saes)
        facts = SaeShelf.of(saes).facts
        sources: dict[str, _Source] = {}
        for key, sae in facts.items():
            name = str(sae.origin.neuronpedia_id)
            if name not in sources:
                path = means.folder / "explanations" / f"{name}.parquet"
                sources[name] = _Source(self, name, path, sae.n_features)
            elif sources[name].n_features != sae.n_features:
                raise InputError(
                    f"the SAE of {key.name} and another SAE of {name} differ in number of features"
                )
        return NeuronpediaTexts(
            {key: sources[str(sae.origin.neuronpedia_id)] for key, sae in facts.items()}
        )


class NeuronpediaTexts:
    """The explanations of a run's SAEs."""

    asks_llm = False

    def __init__(self, sources: Mapping[SaeKey, _Source]) -> None:
        self._sources = sources

    def features(self, sae: SaeKey) -> list[int]:
        """Return the features that the export explains, in rising order."""
        return self._sources[sae].texts.index.unique().tolist()

    def of(
        self, wanted: Sequence[FeatureKey], others: bool = False
    ) -> dict[FeatureKey, tuple[Explanation, ...]]:
        """Return the explanations of features, those of the SAE's most frequent explainer first.

        What the export lacks is asked of the site, ``single`` features of an SAE at most:
        ``InputError`` if it cannot be reached or has enough of us.
        """
        by_source: dict[_Source, set[int]] = {}
        for key in wanted:
            by_source.setdefault(self._sources[key.sae], set()).add(key.feature)
        found = {source: source.of(features) for source, features in by_source.items()}
        return {
            key: texts
            for key in wanted
            if (texts := found[self._sources[key.sae]].get(key.feature))
        }


class _Source:
    """One source: its export as it is kept, and the features that were asked for one by one."""

    def __init__(
        self, spec: NeuronpediaExplanations, name: str, path: Path, n_features: int
    ) -> None:
        self.spec, self.name, self.n_features = spec, name, n_features
        keep_export(spec.server(spec.exports, ELSE), name, path, spec.refresh)
        export = pq.read_table(path, columns=["feature", *TEXTS]).to_pandas()
        self._check_range(export)
        covers = export.groupby("explainer")["feature"].nunique()
        self.covers = {str(explainer): int(n) for explainer, n in covers.items()}
        if spec.explainer is not None:
            export = export[export["explainer"] == spec.explainer]
        if export.empty:
            raise InputError(
                f"the export of {name} has no text of explain.explainer={spec.explainer}, only "
                f"of {', '.join(self.covers) or 'nobody'}; {ELSE}"
            )
        export = export.drop_duplicates(["feature", "text", "explainer", "method"])
        self.texts: pd.DataFrame = export.set_index("feature").sort_index()
        self.sidecar = path.with_name(f"{path.stem}.single.json")
        if spec.refresh:
            self.sidecar.unlink(missing_ok=True)
        self.asked = self._kept()
        self.warned = False
        explainers = sorted(set(export["explainer"]), key=self._rank)
        log.info(
            "%s: %s of %s features explained (%s)",
            name.partition("/")[2],
            f"{self.texts.index.nunique():,}",
            f"{n_features:,}",
            ", ".join(f"{explainer} {self.covers[explainer]:,}" for explainer in explainers),
        )

    def _check_range(self, export: pd.DataFrame) -> None:
        last = export["feature"].max() if len(export) else 0
        if last >= self.n_features:
            raise InputError(
                f"the export of {self.name} has feature {last}, but the SAE has features 0 to "
                f"{self.n_features - 1}: it is not the one that is explained there; {ELSE}"
            )

    def _rank(self, explainer: str) -> tuple[int, str]:
        return -self.covers.get(explainer, 0), explainer

    def of(self, features: set[int]) -> dict[int, tuple[Explanation, ...]]:
        found: dict[int, list[Explanation]] = {feature: [] for feature in sorted(features)}
        for feature, *text in self.texts[self.texts.index.isin(features)].itertuples():
            found[feature].append(Explanation(*text))
        self._ask([feature for feature, texts in found.items() if not texts])
        for feature, texts in found.items():
            if not texts:
                asked = (Explanation(**text) for text in self.asked.get(str(feature), []))
                texts += [one for one in asked if self.spec.explainer in (None, one.explainer)]
            texts.sort(key=lambda one: (self._rank(one.explainer), one.method, one.text))
        return {feature: tuple(texts) for feature, texts in found.items()}

    def _ask(self, missing: list[int]) -> None:
        """Ask the site for features that were never asked for, and keep what it says."""
        new = [feature for feature in missing if str(feature) not in self.asked]
        room = max(0, self.spec.single - len(self.asked))
        if new[room:] and not self.warned:
            self.warned = True
            log.warning(
                "%s: the export lacks %d features that were asked for; %d of them are fetched one "
                "by one, %d stay without explanation (explain.single=%d)",
                self.name, len(new), len(new[:room]), len(new[room:]), self.spec.single,
            )  # fmt: skip
        if not new[:room]:
            return
        server = self.spec.server(self.spec.api, "explain.single=0 asks for no feature by itself")
        with server.pool() as pool:
            try:
                for feature in tqdm(new[:room], desc=self.name, unit="feature", leave=False):
                    self.asked[str(feature)] = fetch_single(server, pool, self.name, feature)
            finally:
                self.asked = self._kept() | self.asked  # with what another run has asked meanwhile
                write_json(self.sidecar, self.asked)

    def _kept(self) -> dict[str, list[dict[str, Any]]]:
        """Return the features that were asked for one by one, with what the site said."""
        if not self.sidecar.exists():
            return {}
        return read_json(self.sidecar, dict, "delete it; its features are fetched again")


def _unexplained(key: SaeKey, origin: SaeOrigin) -> str:
    """Say that there are no explanations of an SAE, and of which one like it there are."""
    near = explained_near(origin.release, origin.sae_id, origin.layer)[:1]
    hint = "".join(
        f"; there are explanations of {one.release}/{one.sae_id} ({one.neuronpedia_id})"
        for one in near
    )
    return (
        f"Neuronpedia explains no SAE that is {key.name}, "
        f"{origin.where}, and explanations of another SAE of that layer must not "
        f"be joined to it, since its features have other meanings{hint}; {ELSE}"
    )
