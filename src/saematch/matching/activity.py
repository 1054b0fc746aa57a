"""Record the activity that objectives read, in one pass over the calibration texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from saematch.core.code import settings_text
from saematch.core.pairs import Pair, SaeKey
from saematch.matching.arm import Arm
from saematch.matching.objectives.objective import ActivityObjective
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Recorder, Recording
from saematch.sae.suites import SaeShelf


@dataclass(frozen=True)
class Activity:
    """Recordings for the objectives that read activity, by the text of the objective's settings."""

    recordings: Mapping[str, Recording] = field(default_factory=dict)
    twins: Mapping[SaeKey, SaeKey] = field(default_factory=dict)
    """Key in recordings of each SAE."""

    def of(self, arm: Arm) -> Recording:
        """Return the recording that an arm's objective reads."""
        return self.recordings[settings_text(arm.objective)]

    def twin(self, pair: Pair) -> Pair:
        """Return the pair with the keys that recordings use."""
        return Pair(self.twins[pair.source], self.twins[pair.target])

    def identity(self, arm: Arm) -> list[str]:
        """Return the names of the files that an arm's objective reads, which are hashes."""
        if not arm.reads_activity:
            return []
        files = self.of(arm).files.values()
        return [path.stem for parts in files for paths in parts for path in paths]


def record_activity(
    saes: SaeShelf,
    paths: Mapping[str, Sequence[Sequence[SaeKey]]],
    arms: Mapping[str, Arm],
    texts: TextPass,
    folder: Path,
) -> Activity:
    """Record the activity of every pair that arms match directly.

    ``paths`` has for each arm the SAEs from source to target of each pair. ``texts`` reads the
    calibration texts. Objectives whose recorders differ only in their pairs share one recording of
    all their pairs.
    """
    needed = {key for of_arm in paths.values() for path in of_arm for key in path}
    twins = texts.models.twins(saes.only([key for key in saes if key in needed]))
    pairs: dict[str, dict[Pair, None]] = {}
    objectives: dict[str, ActivityObjective] = {}
    for name, of_arm in paths.items():
        objective = arms[name].objective
        steps = [Pair(twins[a], twins[b]) for path in of_arm for a, b in pairwise(path)]
        if isinstance(objective, ActivityObjective) and steps:
            text = settings_text(objective)
            objectives[text] = objective
            pairs.setdefault(text, {}).update(dict.fromkeys(steps))
    kinds: dict[str, str] = {}
    shared: dict[str, dict[Pair, None]] = {}
    for text, objective in objectives.items():
        kinds[text] = _kind(objective.recorder(folder, tuple(pairs[text])))
        shared.setdefault(kinds[text], {}).update(pairs[text])
    recorders = {
        kind: objectives[text].recorder(folder, tuple(shared[kind])) for text, kind in kinds.items()
    }
    recordings = texts.record(saes, recorders, "read activity") if recorders else {}
    return Activity({text: recordings[kind] for text, kind in kinds.items()}, twins)


def _kind(recorder: Recorder) -> str:
    """Return everything that two recorders must share to record the same of the same items."""
    cls = type(recorder)
    name = f"{cls.__module__}.{cls.__qualname__}"
    return f"{name} {recorder.only(()).facts()} in {recorder.folder}"
