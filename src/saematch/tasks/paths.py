"""Follow single features through the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import torch
from torch.nn.functional import cosine_similarity

from saematch.evals.weights import feature_mse
from saematch.places import Place, SaeKey
from saematch.results import Row
from saematch.sae.params import SaeParams
from saematch.tasks.match import MatchSet
from saematch.tasks.tables import Tables


@dataclass(frozen=True)
class PathSpec:
    """Spec of the feature paths: from how many features of the first layer, and which."""

    n_paths: int = 20
    seed: int = 0
    features: tuple[int, ...] | None = None
    """Features of the first layer to follow; None draws ``n_paths`` at random, of those that fired
    on the texts if there was an evaluation."""

    def __post_init__(self) -> None:
        if self.n_paths < 1:
            raise ValueError(f"paths.n_paths={self.n_paths}: at least one path is needed")


def path_rows(
    saes: Mapping[SaeKey, SaeParams], matches: MatchSet, spec: PathSpec, tables: Tables | None
) -> list[Row]:
    """Return the rows of ``paths``: one for each set of SAEs, arm, path and step.

    Step by step is composition: a path follows each layer's match to the next (section 3.2). It
    ends early at a feature without a partner. All arms follow the same features.
    """
    rows: list[Row] = []
    for name, group in groupby(matches.places, key=lambda place: place.saes):
        places = list(group)
        chosen = _choose(saes[places[0].earlier], places[0], spec, matches, tables)
        for arm in matches.by_arm:
            at = dict(enumerate(chosen))
            for step, place in enumerate(places):
                scores = _steps(saes, matches, arm, place, tables)
                partners = matches.by_arm[arm][place].partners()
                for path, feature in list(at.items()):
                    if partners[feature] < 0:
                        del at[path]
                        continue
                    row: Row = {**place._asdict(), "arm": arm, "path": path, "step": step}
                    row |= {"feature_from": feature, "feature_to": int(partners[feature])}
                    rows.append(row | {k: v[feature].item() for k, v in scores.items()})
                    at[path] = int(partners[feature])
        assert name == places[0].saes
    return rows


def _choose(
    sae: SaeParams, place: Place, spec: PathSpec, matches: MatchSet, tables: Tables | None
) -> list[int]:
    if spec.features is not None:
        beyond = [f for f in spec.features if not 0 <= f < sae.n_features]
        if beyond:
            raise ValueError(
                f"paths.features holds {beyond[0]}, but layer {place.layer_from} has features 0 to "
                f"{sae.n_features - 1}"
            )
        return list(spec.features)
    alive = torch.arange(sae.n_features)
    if tables is not None:
        first = next(iter(matches.keys.values()))[place]
        alive = torch.nonzero(tables.feature_counts(place, first)[0]).flatten()
    generator = torch.Generator().manual_seed(spec.seed)
    order = torch.randperm(len(alive), generator=generator)[: spec.n_paths]
    return alive[order].tolist()


def _steps(
    saes: Mapping[SaeKey, SaeParams],
    matches: MatchSet,
    arm: str,
    place: Place,
    tables: Tables | None,
) -> dict[str, torch.Tensor]:
    """Return, by earlier feature, how alike it and its partner are."""
    earlier, later, match = saes[place.earlier], saes[place.later], matches.by_arm[arm][place]
    unset = torch.full((match.n_from,), torch.nan, dtype=torch.float64)
    cosine = cosine_similarity(earlier.W_dec[match.rows], later.W_dec[match.columns], dim=1)
    found = {
        "mse_W_dec": unset.index_put((match.rows,), feature_mse(earlier, later, match)),
        "cosine_W_dec": unset.index_put((match.rows,), cosine.double()),
    }
    if tables is None:
        return found
    fired, fired_later, both = tables.feature_counts(place, matches.keys[arm][place])
    partner = fired_later[match.partners().clamp(min=0)]
    return found | {
        "matching_score": both / fired.clamp(min=1),
        "jaccard": both / (fired + partner - both).clamp(min=1),
        "n_fired_from": fired,
        "n_fired_to": partner,
    }
