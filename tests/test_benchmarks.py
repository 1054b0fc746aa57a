"""Run every benchmark at a tiny size."""

import dataclasses
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _benchmarks_importable(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("activity", "bench", "edited", "measures", "measuring", "passes", "plain",
                 "scaling", "solver", "transport"):  # fmt: skip
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_every_row_is_measured_and_written(capsys):
    import bench

    page = Path("page.md")
    page.write_text((ROOT / "docs/benchmarks.md").read_text())
    assert bench.main(["--tiny", "--page", str(page)]) == 0
    printed = capsys.readouterr().out.splitlines()[3:]
    names = [row.name for row in bench.ROWS]
    assert [line.split()[0] for line in printed if line] == names
    assert "Not measured" not in page.read_text().split(bench.MARKS[0])[1]
    for name in names:
        assert f"\n| `{name}` | " in page.read_text().split(bench.MARKS[0])[1]
    assert list(Path().iterdir()) == [page]


@pytest.mark.slow
def test_the_pieces_of_a_large_run_are_measured_and_written():
    import scaling

    page = Path("page.md")
    page.write_text("before\n" + "".join(scaling.MARKS) + "after\n")
    scaling.main(["--tiny", "--repeats", "1", "--page", str(page)])
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after"
    rows = [line for line in lines if line.startswith("|")]
    assert "64 x 72" in rows[0] and len(rows) == 2 + 6 + 2 + 9


def test_computed_stages_follow_from_the_pieces():
    """By hand: 25 pairs, 26 layers, 100,000 tokens, and pieces of one second each."""
    import scaling

    one = scaling.Seconds(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    stages = scaling.computed(scaling.Shape(10), one)
    assert stages["match, optimal permutation"] == 25
    assert stages["one pass over the texts"] == 100_000 * 26 * 2
    assert stages["verify, at most"] == pytest.approx(25 * 13 * 10 * 2.2)
    weights = 3 * 2304 * 9216 + 2304 * 2048 * 3  # MLP; queries, outputs, keys and values
    head = 256_000 * 2304 / weights
    assert stages["skip layers, one strategy"] == pytest.approx(100_000 * 25 * (13 + head))
    wider = scaling.scaled(one, 4)
    assert (wider.match, wider.encode, wider.block) == (16, 4, 1)


def test_a_failure_does_not_hide_the_other_rows(monkeypatch, capsys):
    import bench
    from measuring import Measured

    def fails(_size):
        raise ValueError("no such thing")

    first, second = bench.ROWS[:2]
    good = dataclasses.replace(second, measure=lambda _size: Measured(1.0, 2.0, 0.5))
    monkeypatch.setattr(bench, "ROWS", (dataclasses.replace(first, measure=fails), good))
    page = Path("page.md")
    page.write_text("before\n" + "".join(bench.MARKS) + "after\n")
    assert bench.main(["--page", str(page)]) == 1
    printed = capsys.readouterr()
    assert "FAILED: ValueError('no such thing')" in printed.out
    assert second.name in printed.out.splitlines()[-1] and "0.500" in printed.out
    assert "fails" in printed.err, "the traceback"
    text = page.read_text()
    assert "| failed |" in text and "| 0.500 |" in text
    assert text.startswith("before\n") and text.endswith("after\n")


def test_chosen_rows_leave_the_page_as_it_was(capsys):
    import bench

    assert bench.main(["--tiny", "--rows", "decoding", "--page", "page.md"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert not Path("page.md").exists()
    with pytest.raises(SystemExit):
        bench.main(["--rows", "nothing"])


def test_the_solver_s_benchmark_measures_and_draws(capsys, real_figures):
    real_figures()
    import solver

    cases = [
        solver.Case(name, instance, 64, solver.SIZE, 1)
        for name in ("saematch", "scipy")
        for instance in ("planted", "random")
    ]
    rows = [solver.measure(case) for case in cases]
    assert [row["gap"] is None for row in rows] == [False, False, True, True]
    assert rows[0]["value"] == pytest.approx(rows[2]["value"])
    wide = [{**row, "n": 16384} for row in rows]
    solver.verdicts(wide, is_large=False)
    assert "16,384 random: all / bare product" in capsys.readouterr().out
    solver.figure(rows, Path())
    assert Path("solver.png").exists()
    assert {case.solver for case in solver.small(1, "")} == set(solver.SOLVERS)
    assert solver.large()[0].memory_gib == 2.0
