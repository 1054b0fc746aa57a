"""The data in a run's folder that pages, exports and the terminal show of single features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from saematch.core.errors import InputError
from saematch.core.files import reading
from saematch.core.match import Match
from saematch.core.pairs import DEFAULT, Pair, SaeKey, pair_of
from saematch.core.results import Results, results_path
from saematch.core.tables import Row

FEATURES = "features"
"""Folder with a row for each feature of an SAE: numbers from its weights, and explanations."""
PROFILE = "evaluations/profile"
"""Folder with a row for each feature of an SAE: its activity on the texts."""
CONTEXTS = "evaluations/profile/contexts"
"""Folder with a row for each context: tokens of a text, and the feature's activations on them."""
PARTNERS = "evaluations/profile/partners"
"""Folder with a row for each context and partner: the partner's activations on these tokens."""
VERIFY = "evaluations/verify"
"""Folder with a row for each arm and source feature: effect on its best partner, and finding."""
DAMAGE = (OSError, ValueError, LookupError, TypeError, NotImplementedError)
"""Errors that pandas and pyarrow raise for a damaged file."""


@dataclass(frozen=True)
class RunData:
    """A finished run: its results, and files of single features that are read on demand."""

    folder: Path
    results: Results
    saes: Mapping[SaeKey, int]
    """Number of features of each SAE."""
    pairs: tuple[Pair, ...]
    arms: tuple[str, ...]
    matched: frozenset[tuple[str, Pair]]
    """Arms, each with a pair that it matched."""

    @classmethod
    def open(cls, folder: Path) -> RunData:
        """Open a run's folder.

        Raises ``InputError`` for a folder without a run, a run that has not finished, a run without
        matches, and results of another schema version or damaged ones.
        """
        path = results_path(folder)
        results = Results.load(path)
        if results.status != "finished":
            reason = "" if results.error is None else f" ({results.error:.200})"
            raise InputError(
                f"{folder}: the run has the status {results.status}{reason}; run the same command "
                f"again with run_id={folder.name} to finish it"
            )
        tables = results.tables
        if not len(tables.get("matches", ())):
            raise InputError(f"{folder}: this run has no matches, so there is nothing to follow")
        try:
            saes = {
                SaeKey(str(row["suite"]), int(str(row["layer"]))): int(str(row["n_features"]))
                for row in tables.rows("layers")
            }
            matched = [(str(row["arm"]), pair_of(row)) for row in tables.rows("matches")]
            for key in (key for _, pair in matched for key in pair):
                saes[key]
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path} is damaged ({error} in the table layers or matches): delete it, and run "
                "the same command again"
            ) from error
        arms = tuple(dict.fromkeys(arm for arm, _ in matched))
        pairs = tuple(dict.fromkeys(pair for _, pair in matched))
        return cls(folder, results, saes, pairs, arms, frozenset(matched))

    def suite(self, name: str | None = None) -> str:
        """Return a suite's name; None is the only suite, or the default suite of several.

        Raises ``InputError`` for a suite that is not there, and for None where the choice is open.
        """
        suites = list(dict.fromkeys(key.suite for key in self.saes))
        if name is None and (len(suites) == 1 or DEFAULT in suites):
            return DEFAULT if DEFAULT in suites else suites[0]
        if name not in suites:
            problem = "has several suites" if name is None else f"has no suite {name}"
            raise InputError(
                f"{self.folder} {problem}: choose one of {', '.join(suites)} with --suite"
            )
        return name

    def sae(self, layer: int, suite: str | None = None) -> SaeKey:
        """Return an SAE; ``suite`` as in the method ``suite``.

        Raises ``InputError``, which lists the SAEs of the run, if there is no such SAE.
        """
        key = SaeKey(self.suite(suite), layer)
        if key not in self.saes:
            raise InputError(
                f"{self.folder} has no SAE of {key.name}: choose among "
                f"{_listed(key.name for key in self.saes)}"
            )
        return key

    def check_feature(self, key: SaeKey, feature: int) -> None:
        """Raise ``InputError`` for a feature that an SAE does not have."""
        if not 0 <= feature < self.saes[key]:
            raise InputError(
                f"feature {feature}: the SAE of {key.name} has the features 0 to "
                f"{self.saes[key] - 1}"
            )

    def chosen_arms(self, arms: Sequence[str]) -> list[str]:
        """Return the chosen arms, or all; raises ``InputError`` for an arm that is not there."""
        for arm in arms:
            if arm not in self.arms:
                raise InputError(
                    f"{self.folder} has no arm {arm}: choose among {_listed(self.arms)}"
                )
        return list(arms or self.arms)

    def chosen_pairs(self, labels: Sequence[str]) -> list[Pair]:
        """Return the pairs with these labels, or all; raises ``InputError`` for an unknown label.

        Labels are those of file names: ``3-4``, or ``wide/3-4`` outside the default suite.
        """
        by_label = {pair.label: pair for pair in self.pairs}
        for label in labels:
            if label not in by_label:
                raise InputError(
                    f"{self.folder} has no match of the pair {label}: choose among "
                    f"{_listed(by_label)}"
                )
        return [by_label[label] for label in labels or by_label]

    def match(self, arm: str, pair: Pair) -> Match | None:
        """Return an arm's match of a pair; None if the arm did not match it.

        Raises ``InputError`` if the file is missing, damaged or of other SAEs.
        """
        if (arm, pair) not in self.matched:
            return None
        path = self.folder / "matches" / arm / f"{pair.label}.safetensors"
        with reading(path):
            match, _ = Match.load(path)
        sizes = tuple(self.saes[key] for key in pair)
        if (match.n_source, match.n_target) != sizes:
            raise InputError(
                f"{path} matches {match.n_source} with {match.n_target} features, but the SAEs of "
                f"this run have {sizes[0]} and {sizes[1]}: delete it, and run the same command "
                "again"
            )
        return match

    def features(self, key: SaeKey) -> pd.DataFrame:
        """Return a row for each feature of an SAE, with its number as the index.

        Numbers from weights: ``threshold``, ``norm_W_enc``, ``norm_W_dec``, ``b_enc``. From texts,
        in runs with the evaluation ``profile``: ``n_active`` and ``density`` (tokens on which the
        feature is active, and their share), ``density_<text set>``, ``mean_activation`` (over
        active tokens), ``max_activation``, ``top_tokens``, ``histogram``. ``explanation`` and
        ``explainer`` are None for features without an explanation.
        """
        frame = pd.DataFrame(index=pd.RangeIndex(self.saes[key], name="feature"))
        for folder in (FEATURES, PROFILE):
            of_folder = self._read(folder, key.label)
            if of_folder is not None:
                if not of_folder["feature"].is_unique:
                    path = self.folder / folder / f"{key.label}.parquet"
                    raise _damaged(path, "a feature has two rows")
                frame = frame.join(of_folder.set_index("feature"))
        return frame

    def contexts(self, key: SaeKey) -> pd.DataFrame | None:
        """Return the contexts of an SAE's features; None in a run without them.

        Columns: ``feature``; ``rank`` from 0, by descending activation; ``dataset``; ``text``, the
        number of the text; ``start``, the position of the first token; ``tokens`` and ``values``,
        lists with the tokens as text and the feature's activations.
        """
        return self._read(CONTEXTS, key.label)

    def partners(self, key: SaeKey) -> pd.DataFrame | None:
        """Return the activations of partners in the contexts of an SAE's features.

        Columns: ``feature`` and ``rank`` of the context; ``partner_suite``, ``partner_layer`` and
        ``partner``; ``values``, the partner's activations on the tokens of the context.
        """
        return self._read(PARTNERS, key.label)

    def verified(self, pair: Pair) -> pd.DataFrame | None:
        """Return a row for each arm and tested source feature; None if ``verify`` did not run."""
        return self._read(VERIFY, pair.label)

    def judged(self, key: SaeKey, feature: int) -> list[Row]:
        """Return the rows of the table ``judgements`` in which a feature is source or target."""
        ends = ("source", "target")
        return [
            row
            for row in self.results.tables.rows("judgements")
            if any(
                (row[f"{end}_suite"], row[f"{end}_layer"], row[f"{end}_feature"]) == (*key, feature)
                for end in ends
            )
        ]

    def _read(self, folder: str, label: str) -> pd.DataFrame | None:
        path = self.folder / folder / f"{label}.parquet"
        if not path.exists():
            return None
        try:
            if path.is_dir():
                raise OSError("it is a folder")
            frame = pd.read_parquet(path, page_checksum_verification=True)
            frame["feature"]
        except DAMAGE as error:
            raise _damaged(path, str(error)) from error
        return frame


def _damaged(path: Path, reason: str) -> InputError:
    reason = " ".join(reason.split())[:200]
    return InputError(f"{path} is damaged ({reason}): delete it, and run the same command again")


def _listed(names: Iterable[str], most: int = 40) -> str:
    """Return names for a message, the first ones of many."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" * (len(listed) > most))
