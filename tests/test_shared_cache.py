"""Runs that start at the same time on one empty cache."""

import subprocess

import pytest

from commands import command, tables

RUNS = ("a", "b", "c", "d")


@pytest.mark.slow
def test_runs_that_start_together_share_an_empty_cache(tiny, tmp_path):
    settings = ["evaluations=[co_activation,skipping,features,explain]", "explain=own"]
    started = [
        subprocess.Popen(
            command(tiny, *settings, "arms=[folded,random]", f"run_id={run}"),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for run in RUNS
    ]
    printed = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * len(RUNS), printed
    first, *others = (tables(tmp_path / "outputs/match" / run) for run in RUNS)
    assert first["features"][0]["source_explanation"]
    assert all(of_run == first for of_run in others)
    cache = tmp_path / "outputs/cache"
    # one of tokens, one of contexts for each of four SAEs; three batches of sums for each of two
    # evaluations; three pairs of layers in two arms
    numbers = {kind.name: len(list(kind.iterdir())) for kind in cache.iterdir() if kind.is_dir()}
    assert numbers == {"tokens": 1, "contexts": 4, "sums": 6, "matches": 6}
    assert not list(tmp_path.rglob("*.part"))
    assert not list((tmp_path / "outputs/match").rglob("contexts"))
