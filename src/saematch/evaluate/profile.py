"""The evaluation ``profile``: what single features do on the evaluation texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from saematch.core.columns import Column
from saematch.core.errors import InputError
from saematch.core.files import replacing
from saematch.core.pairs import SaeKey
from saematch.core.progress import progress
from saematch.core.specs import AtLeast0, AtLeast1, Unique, spec
from saematch.core.tables import Row, Tables
from saematch.evaluate.activity import ReadTexts, activity_of, read_codes
from saematch.evaluate.co_activation import N_DEAD
from saematch.evaluate.contexts import N_SOURCES, PARTNER_COLUMNS, Contexts, Window, links_of
from saematch.evaluate.evaluation import Evaluation, Subject
from saematch.matching.matchers import Identity, Random
from saematch.sae.codes import CodesRecorder
from saematch.sae.recorders import Recording
from saematch.sae.suites import SaeShelf

CONTEXTS, PARTNERS = "contexts", "partners"
"""Names of the folders of contexts and of the activations of partners."""
MEDIAN_DENSITY = Column(
    "median_density", "median density", least=0.0, greatest=1.0,
    meaning="median over features that fired of the share of tokens on which a feature is active",
)  # fmt: skip


@spec("evaluations.profile")
class Profile(Evaluation):
    """Spec of the evaluation ``profile``: the table ``profile``, and files of single features.

    Files in the run's folder, in ``evaluations/profile``: activity of every feature; contexts of
    the features that fired most, and the activations of their partners in these contexts
    (``RunData`` has the columns). Everything is computed from all activations on the texts. The
    recorder keeps 6 bytes for each of them in the cache. One SAE is in memory at a time, with at
    most 26 bytes for each of its activations: 0.5 GiB for 300,000 tokens with 70 active features.
    """

    columns: ClassVar[tuple[Column, ...]] = (N_DEAD, MEDIAN_DENSITY)
    reads_texts: ClassVar[bool] = True

    n_features: AtLeast0 = 2048
    """Number of features of each SAE that get contexts: those that fired most."""
    features: Unique[AtLeast0] = ()
    """Further features that get contexts, in every SAE."""
    n_contexts: AtLeast1 = 4
    """Largest number of contexts of a feature. Each comes from another text."""
    before: AtLeast0 = 10
    """Number of tokens of a context before the token with the largest activation."""
    after: AtLeast0 = 5
    """Number of tokens of a context after this token."""
    partners: AtLeast0 = 5
    """Number of best partners of a feature, in each arm, whose activations in its contexts are
    kept. If the feature is a target, its two best sources are kept too."""

    def check_saes(self, saes: SaeShelf) -> None:
        """Raise ``InputError`` for features beyond an SAE's width, and for names of our folders."""
        for key, facts in saes.facts.items():
            beyond = [feature for feature in self.features if feature >= facts.n_features]
            if beyond:
                raise InputError(
                    f"evaluations.profile.features holds {beyond[0]}, but the SAE of {key.name} "
                    f"has only the features 0 to {facts.n_features - 1}"
                )
            if key.suite in (CONTEXTS, PARTNERS):
                raise InputError(
                    f"suites.{key.suite}: the evaluation profile writes a folder of this name: "
                    "choose another name for the suite"
                )

    def recorder(self, subject: Subject) -> CodesRecorder:
        """Return the recorder of all activations; SAEs that suites share are recorded once."""
        return CodesRecorder(subject.folder, tuple(dict.fromkeys(subject.twins.values())))

    def tables(self, subject: Subject, recording: Recording | None) -> Tables:
        """Write the files, and return ``profile`` with a row for each SAE."""
        assert recording is not None and subject.texts is not None
        readers = subject.texts.readers
        labels = dict.fromkeys(map(subject.models.of, subject.twins))
        profiling = _Profiling(
            self, subject, recording, {label: ReadTexts.of(readers[label]) for label in labels}
        )
        kept = dict.fromkeys(subject.twins.values())
        described: dict[SaeKey, _Described] = {}
        with progress("profile features", len(kept) + len(subject.twins), "SAE") as bar:
            for key in kept:
                described[key] = profiling.describe(key)
                bar.advance()
            for key in subject.twins:
                profiling.write_partners(key, described[subject.twins[key]].contexts)
                bar.advance()
        rows = [{**key._asdict(), **described[twin].row} for key, twin in subject.twins.items()]
        return Tables.of({"profile": rows})


class _Described(NamedTuple):
    contexts: Contexts
    row: Row


class _Profiling(NamedTuple):
    """The work of one run."""

    spec: Profile
    subject: Subject
    recording: Recording
    texts: dict[str, ReadTexts]
    """Texts of each language model, by its label."""

    def describe(self, key: SaeKey) -> _Described:
        """Write activity and contexts of an SAE, for every suite that shares it."""
        spec, texts = self.spec, self.texts[self.subject.models.of(key)]
        codes = self._codes(key)
        by_feature = codes.tocsc()
        frame = activity_of(codes, by_feature, texts)
        del codes
        n_active = frame["n_active"].to_numpy()
        chosen = np.argsort(-n_active, kind="stable")[: spec.n_features]
        chosen = np.union1d(chosen, np.array(spec.features, np.int64))
        window = Window(spec.before, spec.after)
        contexts = Contexts.of(by_feature, chosen, spec.n_contexts, texts, window)
        of_contexts = contexts.frame(by_feature, texts)
        for suite_key, twin in self.subject.twins.items():
            if twin == key:
                self._write(frame, "", suite_key)
                self._write(of_contexts, CONTEXTS, suite_key)
        live = n_active > 0
        density = frame["density"][live].median()
        return _Described(contexts, {
            "n_tokens": by_feature.shape[0],
            "n_live": int(live.sum()),
            "n_dead": int((~live).sum()),
            "n_with_contexts": len(np.unique(contexts.features)),
            "median_density": float(density) if live.any() else None,
        })  # fmt: skip

    def write_partners(self, key: SaeKey, contexts: Contexts) -> None:
        """Write the activations of partners in the contexts of an SAE's features."""
        linked: dict[SaeKey, list[np.ndarray]] = {}
        for other, links in self._links(key):
            linked.setdefault(other, []).append(links)
        parts = []
        for other, of_other in linked.items():
            codes = self._codes(self.subject.twins[other])
            parts.append(contexts.partners(other, np.concatenate(of_other), codes))
        frame = pd.concat(parts or [pd.DataFrame(columns=list(PARTNER_COLUMNS))])
        frame = frame.sort_values(["feature", "rank"], kind="stable", ignore_index=True)
        self._write(frame, PARTNERS, key)

    def _links(self, key: SaeKey) -> Iterator[tuple[SaeKey, np.ndarray]]:
        """Yield the SAEs that share a pair and a language model with an SAE, and the links.

        Activations in two language models are not compared, since their tokens may differ.
        Baselines have no links: a random partner says nothing about a feature.
        """
        subject, spec = self.subject, self.spec
        for pair in subject.matches.pairs:
            if key not in pair or len({subject.models.of(end) for end in pair}) > 1:
                continue
            for arm, match in subject.matches.of(pair).items():
                if isinstance(subject.arms[arm].matcher, Random | Identity):
                    continue
                if key == pair.source:
                    yield pair.target, links_of(match, spec.partners)
                if key == pair.target:
                    yield pair.source, links_of(match.inverse(), min(N_SOURCES, spec.partners))

    def _codes(self, key: SaeKey) -> csr_array:
        return read_codes(self.recording, key, self.subject.saes.facts[key].n_features)

    def _write(self, frame: pd.DataFrame, folder: str, key: SaeKey) -> None:
        path: Path = self.subject.output / "profile" / folder / f"{key.label}.parquet"
        with replacing(path) as part:
            frame.to_parquet(part, index=False)
