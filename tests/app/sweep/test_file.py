"""Sweep files: what is taken, what is refused, and that jobs are those of W&B's own agent."""

from pathlib import Path

import pytest
import yaml

from saematch.app.sweep.file import read_sweep

GOOD = {
    "name": "s",
    "project": "saematch",
    "program": "saematch",
    "method": "grid",
    "metric": {"name": "recall/folded", "goal": "maximize"},
    "parameters": {"objective": {"values": ["both", "decoder"]}, "layers": {"values": [[1, 2]]}},
    "command": ["${env}", "${interpreter}", "-m", "saematch", "+experiment=mse",
                "${args_no_hyphens}"],
}  # fmt: skip


def written(folder: Path, **changes) -> Path:
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (GOOD | changes).items() if v is not None}))
    return path


def test_a_grid_sorts_parameters_and_changes_the_last_one_first(tmp_path):
    parameters = {"b": {"values": [1, 2]}, "a": {"values": ["x", "y"]}, "c": {"value": True}}
    sweep = read_sweep(written(tmp_path, parameters=parameters))
    assert sweep.grid() == [
        {"a": "x", "b": 1, "c": True},
        {"a": "x", "b": 2, "c": True},
        {"a": "y", "b": 1, "c": True},
        {"a": "y", "b": 2, "c": True},
    ]


def agents_command(command, point):
    """Put a job's command line together as W&B's agent does, with its own functions."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    words = create_sweep_command(list(command))
    substitutes = create_sweep_command_args({"args": {k: {"value": v} for k, v in point.items()}})
    substitutes |= {"interpreter": ["python"], "env": ["/usr/bin/env"]}
    return [w for word in words
            for w in (substitutes[word[2:-1]] if word.startswith("${") else [word])]  # fmt: skip


def test_the_settings_of_a_job_are_those_of_the_agents_command(tmp_path):
    point = {"layers": [1, 3], "f": [0.1], "objective": "both", "x": 0.25, "b": False,
             "decode": ["permute"], "path": "a/b:c"}  # fmt: skip
    sweep = read_sweep(written(tmp_path))
    command = agents_command(GOOD["command"], point)
    assert command[:4] == ["/usr/bin/env", "python", "-m", "saematch"]
    assert command[4:] == sweep.job_settings(point)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "annealing"}, "'annealing' is not one of grid, random, bayes"),
        ({"metric": {"name": "x"}}, "needs a 'name' and a 'goal'"),
        ({"metric": {"name": "x", "goal": "up"}}, "'up' is neither"),
        ({"parameters": {}}, "at least one setting"),
        ({"parameters": {"a": 3}}, "needs 'value', 'values' or a distribution"),
        ({"parameters": {"a": {"values": [{"b": 1}]}}}, "scalars, names or flat lists"),
        ({"parameters": {"a": {"values": [[[1]]]}}}, "scalars, names or flat lists"),
        ({"parameters": {"a": {"values": [None]}}}, "write the string 'null'"),
        ({"parameters": {"a": {"values": ["b=c"]}}}, "cannot contain an equals sign"),
        ({"early_terminate": {"type": "hyperband"}}, "needs W&B's server"),
        ({"command": ["${env}", "python", "x.py", "${args}"]}, "must have this form"),
        ({"command": None}, "has no 'command'"),
        ({"run_cap": "many"}, "not a number of jobs"),
        ({"run_cap": True}, "not a number of jobs"),
        ({"parameters": {"a": {"values": []}}}, "must be a list of at least one value"),
        ({"parameters": {"a": {"values": "both"}}}, "must be a list of at least one value"),
        ({"parameters": {"a": {"values": [1, 1]}}}, "a value twice"),
        ({"metric": {"name": 5, "goal": "maximize"}}, "5 is not text"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_sweep(written(tmp_path, **changes))


def test_a_grid_wants_values(tmp_path):
    sweep = read_sweep(written(tmp_path, parameters={"a": {"min": 0.0, "max": 1.0}}))
    with pytest.raises(ValueError, match="'a' has no 'values'"):
        sweep.grid()


def test_a_missing_or_broken_file(tmp_path):
    written(tmp_path)
    with pytest.raises(ValueError, match=r"saematch has .*sparsity, verify, width_objective"):
        read_sweep(tmp_path / "t.yaml")
    with pytest.raises(ValueError, match="saematch has"):
        read_sweep(tmp_path / "sparsity.yaml")
    assert read_sweep(Path("sparsity")) == read_sweep(Path("sweeps/sparsity.yaml"))
    (tmp_path / "b.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        read_sweep(tmp_path / "b.yaml")
