"""A run on several processes has the same results as on one."""

import json

import pytest

ROUNDED = {"rel": 1e-5, "abs": 1e-6}
"""Processes with fewer threads round differently."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice on processes
def test_two_processes_give_the_results_of_one_and_write_them_once(cli, tmp_path):
    """Three batches do not divide by two: none may be counted twice or left out."""
    settings = {"one": [], "two": ["trainer.devices=2", "trainer.strategy=ddp_spawn"]}
    files, results = {}, {}
    for run, how in settings.items():
        message, _ = cli(f"run_id={run}", "logger=csv", "cache=null", "figures=[]", *how)
        assert message is None
        folder = tmp_path / "outputs/match" / run
        paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        n_files = sum(name.startswith("cache/sums/") for name in paths)
        assert n_files == 6, "three batches for each of two recorders"
        files[run] = {name for name in paths if not name.startswith("cache/")}
        results[run] = json.loads((folder / "results.json").read_text())
    assert files["two"] == files["one"], "one results.json, one record of the logger"
    first, second = (results[run]["tables"] for run in settings)
    assert first.keys() == second.keys()
    for name, rows in first.items():
        for mine, theirs in zip(rows, second[name], strict=True):
            assert mine.keys() == theirs.keys()
            for column, value in mine.items():
                expected = pytest.approx(value, **ROUNDED) if isinstance(value, float) else value
                assert theirs[column] == expected, (name, column)
    assert results["two"]["metrics"] == pytest.approx(results["one"]["metrics"], **ROUNDED)
