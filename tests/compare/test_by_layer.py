"""Runs side by side by layer: curves, and the agreement of their matches."""

import json
from itertools import permutations

import pandas
import pytest
import torch

from saematch.app.compare import compare
from saematch.compare.by_layer import MAX_RUNS, agreement_by_arm, by_layer
from saematch.compare.comparison import collect
from saematch.compare.runs import MEANS
from saematch.compare.terminal import agreement_table, print_comparison
from saematch.core.columns import Column
from saematch.core.match import Match
from saematch.core.pairs import Pair
from saematch.core.results import Results
from saematch.core.tables import Tables, rows_of

F = 4
SCORE = Column("judge_score", "judge score (words)", logged=("matches",))


@pytest.fixture
def write(tmp_path):
    """Write a run with matches of layers 0 to 2 by the arms ``folded`` and ``random``."""

    def write(name, columns, revision="r", value=0.5, score=SCORE):
        rows, spliced, folder = [], [], tmp_path / "runs" / name
        for source in (0, 1):
            pair = Pair.of_layers(source, source + 1)
            for arm in ("folded", "random"):
                match = Match.from_columns(torch.tensor(columns), F)
                match.save(folder / "matches" / arm / f"{pair.label}.safetensors")
                rows.append({**pair.columns(), "arm": arm, "mse_W_dec": value + source,
                             "matching_score": value, "matching_score_low": value - 0.1,
                             "matching_score_high": value + 0.1})  # fmt: skip
            spliced += [
                {**pair.columns(), "arm": "folded", "strategy": strategy, "dataset": dataset,
                 "quantile": quantile, "explained_variance": ev}
                for strategy in ("permute", "permute_raw", "increment")
                for dataset, quantile, ev in (("a", None, value), ("b", None, value + 0.2),
                                              ("a", 0.5, 9.0))
            ]  # fmt: skip
        mean = dict.fromkeys(MEANS) | {"suites": "default", "arm": "folded", "n_pairs": 2}
        names = ("mse_W_dec", "matching_score", "explained_variance")
        means = [mean | {"metric": metric, "value": value} for metric in names]
        tables = {"means": means, "matches": rows, "strategies": spliced}
        saes = {str(n): {"layer": n, "release": "mine", "sae_id": str(n), "revision": revision}
                for n in (0, 1)}  # fmt: skip
        saes["2"] = {"layer": 2, "release": "mine", "sae_id": "2", "revision": "r"}
        facts = {"code": "a", "saes": saes}
        config = {"overrides": [f"sae.path={revision}", f"seed={name}"], "seed": name}
        config["sae"] = {"path": revision}
        results = Results(name, config, facts, status="finished")
        results.tables = Tables.of(tables, [score])
        results.save(folder / "results.json")

    return write


def agreement(tmp_path):
    return collect([tmp_path / "runs"]).by_layer.agreement


def test_agreement_is_the_share_of_equal_entries(write, tmp_path):
    write("a", [0, 1, 2, 3])
    write("b", [0, 1, 3, 2])
    write("c", [1, 0, 3, 2])
    rows = agreement(tmp_path)
    values = {(r["run"], r["against_run"]): r["agreement"] for r in rows_of(rows)}
    assert values == {("a", "b"): 0.5, ("a", "c"): 0.0, ("b", "c"): 0.5}
    assert len(rows) == 3 * 2 * 2
    assert set(rows["chance"]) == {1 / F}
    means = agreement_by_arm(rows)
    assert means["n_pairs"].tolist() == [2] * 6
    assert means["arm"].tolist() == ["folded", "random"] * 3


def test_chance_is_the_mean_agreement_over_all_permutations():
    match = Match.from_columns(torch.tensor([2, 0, 3, 1]), F)
    others = [Match.from_columns(torch.tensor(p), F) for p in permutations(range(F))]
    values = [other.agreement(match) for other in others]
    assert sum(values) / len(values) == pytest.approx(1 / F)


def test_matches_of_different_saes_are_not_compared(write, tmp_path):
    write("a", [0, 1, 2, 3])
    write("b", [0, 1, 2, 3])
    write("c", [0, 1, 2, 3], revision="s")
    comparison = collect([tmp_path / "runs"])
    rows = rows_of(comparison.by_layer.agreement)
    assert {(r["run"], r["against_run"]) for r in rows} == {("a", "b")}
    (note,) = comparison.by_layer.notes
    assert note.endswith("not compared with each other: those of a and c; b and c")
    assert note in comparison.notes


def test_curves_have_a_value_for_each_pair_and_average_the_data_sets(write, tmp_path):
    write("a", [0, 1, 2, 3], value=0.5)
    write("b", [0, 1, 2, 3], value=0.25)
    rows = collect([tmp_path / "runs"]).by_layer.metrics
    of_a = rows[(rows["run"] == "a") & (rows["arm"] == "folded")].set_index("metric")
    assert of_a.loc["mse_W_dec", "value"].tolist() == [0.5, 1.5]
    assert of_a.loc["matching_score", ["low", "high"]].values.tolist() == [[0.4, 0.6]] * 2
    spliced = of_a.loc["explained_variance"]
    assert set(spliced["strategy"]) == {"permute", "permute_raw"}
    assert spliced["value"].tolist() == pytest.approx([0.6] * 4), "no partial matches"
    assert spliced["low"].isna().all()


def test_files_figures_page_and_terminal(write, tmp_path, capsys, monkeypatch):
    write("a", [0, 1, 2, 3])
    write("b", [0, 1, 3, 2], value=0.25)
    out = tmp_path / "out"
    comparison = compare([tmp_path / "runs"], out)
    drawn = {"mse_W_dec_by_layer", "matching_score_by_layer", "explained_variance_by_layer"}
    assert drawn | {"agreement"} <= set(comparison.figures)
    page = (out / "index.html").read_text()
    assert all(f'src="figures/{name}.png"' in page for name in (*drawn, "agreement"))
    assert "<h2>Agreement of matches</h2>" in page
    table = pandas.read_csv(out / "agreement.csv")
    assert table["agreement"].tolist() == [0.5] * 4
    assert len(pandas.read_csv(out / "by_layer.csv")) == 2 * (4 + 4 + 4)
    table = agreement_table(comparison)
    assert table.headings == ["folded", "random", "by chance"]
    assert table.rows == [["a", "b", "0.500", "0.500", "0.250"]]
    print_comparison(comparison)
    assert "share of equal entries" in capsys.readouterr().out
    compare([tmp_path / "runs" / "a"], out)
    assert not (out / "agreement.csv").exists(), "one run has nothing to agree with"
    assert not (out / "figures/agreement.png").exists()


def test_many_runs_make_a_matrix_and_too_many_are_a_note(write, tmp_path):
    for number in range(5):
        write(str(number), [0, 1, 2, 3])
    assert "agreement" in compare([tmp_path / "runs"], tmp_path / "out").figures
    runs = collect([tmp_path / "runs"]).compared
    many = by_layer((runs * MAX_RUNS)[: MAX_RUNS + 1])
    assert many.agreement.empty
    assert "too many to compare by layer (at most 12): choose some with --where" in many.notes[0]


def test_a_metric_that_runs_define_differently_has_the_definition_of_the_package(write, tmp_path):
    write("a", [0, 1, 2, 3])
    write("b", [0, 1, 2, 3])
    assert collect([tmp_path / "runs"]).column("judge_score") == SCORE
    write("b", [0, 1, 2, 3], score=Column("judge_score", "judge score"))
    assert collect([tmp_path / "runs"]).column("judge_score").label == "judge score"


def test_a_damaged_match_ends_in_one_line(write, tmp_path):
    write("a", [0, 1, 2, 3])
    write("b", [0, 1, 2, 3])
    (tmp_path / "runs/b/matches/folded/0-1.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"0-1\.safetensors is not a whole match file"):
        collect([tmp_path / "runs"])


def test_the_mirror_has_the_tables(write, tmp_path, monkeypatch):
    from saematch.compare.mirror import mirror_comparison

    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("WANDB_MODE", "offline")
    write("a", [0, 1, 2, 3])
    write("b", [0, 1, 3, 2])
    mirror_comparison(compare([tmp_path / "runs"], tmp_path / "out"), "p", None)
    files = (tmp_path / "out/wandb").glob("offline-run-*/files/media/table/tables/*.json")
    tables = {path.name.partition("_")[0]: json.loads(path.read_text()) for path in files}
    assert len(tables["agreement"]["data"]) == 4
