"""Mirror a comparison to Weights & Biases."""

from __future__ import annotations

from saematch.compare.by_layer import AGREEMENT, CHANCE
from saematch.compare.comparison import Comparison, layer_tables
from saematch.core.files import hashed
from saematch.core.results import Results
from saematch.core.tables import Tables, frame_of
from saematch.runs.tracking import Outcome, WandbLogging


def mirror_comparison(comparison: Comparison, project: str, entity: str | None) -> None:
    """Mirror a comparison to W&B as a run of job type ``compare``, offline without a connection.

    Comparisons in the same folder are the same W&B run.
    """
    folder = comparison.out
    config = {
        "folders": [str(run.folder) for run in comparison.compared],
        "parameters": list(comparison.parameters),
    }
    runs = frame_of(comparison.run_rows())
    frames = {"comparison": comparison.means, "runs": runs, **layer_tables(comparison)}
    tables = Tables(frames, [*comparison.columns.values(), AGREEMENT, CHANCE])
    outcome = Outcome(
        Results("compare", config, {}, tables=tables), comparison.figures, folder / "matches"
    )
    run_id = f"compare-{hashed([str(folder.resolve())])[:8]}"
    mirror = WandbLogging(project=project, entity=entity)
    mirror.open("compare", folder, config, run_id, "compare").finish(outcome)
