"""Explanations from Neuronpedia's bulk exports, stored as one Parquet file for each source."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow.parquet as pq

from saematch.core.errors import InputError
from saematch.core.files import read_json, write_json
from saematch.core.pairs import SaeKey
from saematch.core.progress import progress
from saematch.core.specs import spec
from saematch.explain.explanations import Explanation, FeatureKey, Inputs
from saematch.explain.neuronpedia_web import ELSE, TEXTS, Server, fetch_single, keep_export
from saematch.sae.params import SaeOrigin
from saematch.sae.sources.registry import explained_near
from saematch.sae.suites import Saes, SaeShelf

log = logging.getLogger(__name__)

SOURCE = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@spec("explain")
class NeuronpediaExplanations:
    """Spec of the explanations that Neuronpedia publishes for exactly the SAEs of a run."""

    on_texts: ClassVar[bool] = False
    asks_llm: ClassVar[bool] = False

    exports: str = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
    """Address of the bucket of bulk exports."""
    api: str = "https://www.neuronpedia.org"
    """Address of the site, for requests of single features."""
    explainer: str | None = None
    """Explainer model whose texts are used; None for all."""
    single: int = 50
    """Maximum number of features of an SAE that are fetched one by one if the bulk export lacks
    them."""
    refresh: bool = False
    """Whether to list the exports again and fetch changed batches."""
    connections: int = 4
    """Number of batches fetched at the same time."""
    retries: int = 6
    """Number of further attempts after a failed request, with growing delays."""
    timeout: float = 60.0
    """Time without a byte after which an attempt fails, in seconds."""

    def __post_init__(self) -> None:
        for name, least in (("single", 0), ("connections", 1), ("retries", 0), ("timeout", 1)):
            if getattr(self, name) < least:
                raise InputError(f"explain.{name}={getattr(self, name)} must be {least} or more")
        for name in ("exports", "api"):
            if not getattr(self, name).startswith(("http://", "https://")):
                raise InputError(f"explain.{name}={getattr(self, name)!r} must be http(s)://…")

    def server(self, address: str, instead: str) -> Server:
        """Return a server for an address; messages suggest ``instead`` if it fails."""
        return Server(address, self.connections, self.retries, self.timeout, instead)

    def check(self, saes: Saes) -> None:
        """Raise ``InputError`` for an SAE without explanations; it names a similar SAE."""
        for key, sae in SaeShelf.of(saes).facts.items():
            source = sae.origin.neuronpedia_id
            if source is None:
                raise InputError(_unexplained(key, sae.origin))
            if not SOURCE.fullmatch(source):
                raise InputError(
                    f"the SAE of {key.name} has neuronpedia_id={source!r}: must be model/source"
                )

    def recorder(self, saes: Saes, inputs: Inputs) -> None:
        """Return None: nothing is recorded."""

    def open(self, saes: Saes, inputs: Inputs) -> NeuronpediaTexts:
        """Fetch the parts of each source's export that are not stored yet.

        A killed fetch continues with the next batch. Raises ``InputError`` for an SAE that
        ``check`` refuses, an unreachable address, a rate limit that outlasts the retries, a batch
        that is broken in every attempt, and an export that is empty, belongs to another SAE, or has
        no text of ``explainer``.
        """
        self.check(saes)
        facts = SaeShelf.of(saes).facts
        sources: dict[str, _Source] = {}
        for key, sae in facts.items():
            name = str(sae.origin.neuronpedia_id)
            if name not in sources:
                path = inputs.folder / "explanations" / f"{name}.parquet"
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
        """Return the features that the export explains, in ascending order."""
        return self._sources[sae].texts.index.unique().tolist()

    def of(
        self, features: Sequence[FeatureKey], others: bool = False
    ) -> dict[FeatureKey, tuple[Explanation, ...]]:
        """Return the explanations of features, those of the SAE's most frequent explainer first.

        Features that the export lacks are requested from the site, at most ``single`` of an SAE.
        Raises ``InputError`` if the site cannot be reached or its rate limit is reached.
        """
        by_source: dict[_Source, set[int]] = {}
        for key in features:
            by_source.setdefault(self._sources[key.sae], set()).add(key.feature)
        explained = {source: source.of(numbers) for source, numbers in by_source.items()}
        return {
            key: texts
            for key in features
            if (texts := explained[self._sources[key.sae]].get(key.feature))
        }


class _Source:
    """One source: its stored export, and the features that were requested one by one."""

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
        self.fetched = self._stored_answers()
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
                f"{self.n_features - 1}: the export belongs to another SAE; {ELSE}"
            )

    def _rank(self, explainer: str) -> tuple[int, str]:
        return -self.covers.get(explainer, 0), explainer

    def of(self, features: set[int]) -> dict[int, tuple[Explanation, ...]]:
        explained: dict[int, list[Explanation]] = {feature: [] for feature in sorted(features)}
        for feature, *text in self.texts[self.texts.index.isin(features)].itertuples():
            explained[feature].append(Explanation(*text))
        self._fetch([feature for feature, texts in explained.items() if not texts])
        for feature, texts in explained.items():
            if not texts:
                fetched = (Explanation(**text) for text in self.fetched.get(str(feature), []))
                texts += [text for text in fetched if self.spec.explainer in (None, text.explainer)]
            texts.sort(key=lambda text: (self._rank(text.explainer), text.method, text.text))
        return {feature: tuple(texts) for feature, texts in explained.items()}

    def _fetch(self, missing: list[int]) -> None:
        """Fetch features from the site that were never requested, and store its answers."""
        new = [feature for feature in missing if str(feature) not in self.fetched]
        room = max(0, self.spec.single - len(self.fetched))
        if new[room:] and not self.warned:
            self.warned = True
            log.warning(
                "%s: the export lacks %d features that the run needs; %d of them are fetched one "
                "by one, %d have no explanation (explain.single=%d)",
                self.name, len(new), len(new[:room]), len(new[room:]), self.spec.single,
            )  # fmt: skip
        if not new[:room]:
            return
        server = self.spec.server(self.spec.api, "explain.single=0 fetches no single features")
        chosen = new[:room]
        with server.pool() as pool, progress(self.name, len(chosen), "feature") as bar:
            try:
                for feature in chosen:
                    self.fetched[str(feature)] = fetch_single(server, pool, self.name, feature)
                    bar.advance()
            finally:
                self.fetched = (
                    self._stored_answers() | self.fetched
                )  # another run may have fetched more
                write_json(self.sidecar, self.fetched)

    def _stored_answers(self) -> dict[str, list[dict[str, Any]]]:
        """Return the stored answers of the site by feature."""
        if not self.sidecar.exists():
            return {}
        return read_json(self.sidecar, dict, "delete it; its features are fetched again")


def _unexplained(key: SaeKey, origin: SaeOrigin) -> str:
    """Return the message that an SAE has no explanations, with a similar SAE that has them."""
    near = explained_near(origin.release, origin.sae_id, origin.layer)[:1]
    hint = "".join(
        f"; there are explanations of {sae.release}/{sae.sae_id} ({sae.neuronpedia_id})"
        for sae in near
    )
    return (
        f"Neuronpedia has no explanations of the SAE of {key.name}, {origin.where}; explanations "
        f"of another SAE of that layer do not apply to it, since its features have other meanings"
        f"{hint}; {ELSE}"
    )
