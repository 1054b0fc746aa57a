"""The data in a run's folder that pages, exports and the terminal show of single features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey, pair_of
from saematch.core.results import Results

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


@dataclass(frozen=True)
class RunData:
    """A finished run: its results, and files of single features that are read on demand."""

    folder: Path
    results: Results
    saes: Mapping[SaeKey, int]
    """Number of features of each SAE."""
    pairs: tuple[Pair, ...]
    arms: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> RunData:
        """Open a run's folder.

        Raises ``InputError`` for a folder without a run, a run that has not finished, a run without
        matches, and results of another schema version or damaged ones.
        """
        path = folder / "results.json"
        if not path.is_file():
            raise InputError(
                f"{folder} has no results.json: name the folder of a run, such as "
                "outputs/match/<run_id>"
            )
        results = Results.load(path)
        if results.status != "finished":
            raise InputError(
                f"{folder}: the run has the status {results.status}; run the same command again "
                f"with run_id={folder.name} to finish it"
            )
        tables = results.tables
        if not len(tables.get("matches", ())):
            raise InputError(f"{folder}: this run has no matches, so there is nothing to follow")
        saes = {
            SaeKey(str(row["suite"]), int(row["layer"])): int(row["n_features"])
            for row in tables.rows("layers")
        }
        rows = tables.rows("matches")
        pairs = tuple(dict.fromkeys(map(pair_of, rows)))
        arms = tuple(dict.fromkeys(str(row["arm"]) for row in rows))
        return cls(folder, results, saes, pairs, arms)

    def match(self, arm: str, pair: Pair) -> Match | None:
        """Return an arm's match of a pair; None if the arm did not match it."""
        path = self.folder / "matches" / arm / f"{pair.label}.safetensors"
        return Match.load(path)[0] if path.exists() else None

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

    def _read(self, folder: str, label: str) -> pd.DataFrame | None:
        path = self.folder / folder / f"{label}.parquet"
        if not path.exists():
            return None
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise InputError(
                f"{path} is damaged ({error}): delete it, and run the same command again"
            ) from error
