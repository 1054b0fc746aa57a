"""Comparing runs, from results written by hand."""

import json
import os

import pandas
import pytest

from saematch.app.compare import compare
from saematch.app.main import main
from saematch.compare.comparison import collect
from saematch.compare.figures import run_series
from saematch.compare.plan import metrics_of, plan_panels, unique_values
from saematch.compare.runs import MEANS
from saematch.compare.terminal import findings
from saematch.core.columns import Column
from saematch.core.results import Results
from saematch.core.tables import Tables, frame_of, rows_of
from wandb_reader import records

VERSIONS = {"torch": "2.9.0", "transformers": "5.0.0"}


def mean(metric, value, arm="folded", low=None, high=None, **cell):
    row = dict.fromkeys(MEANS) | {"suites": "default", "arm": arm, "metric": metric}
    return row | {"value": value, "low": low, "high": high, "n_pairs": 2, **cell}


def origin(layer, revision="sha256:1"):
    return {"layer": layer, "release": "mine", "sae_id": f"layer_{layer}", "revision": revision}


def means(value):
    """Rows of a run: of weights, of all texts, of one data set, and without a match."""
    splice = {"dataset": "all", "strategy": "permute"}
    return [
        mean("recall", value),
        mean("matching_score", value, low=value - 0.01, high=value + 0.02, dataset="all"),
        mean("matching_score", 0.5, low=0.4, high=0.6, dataset="prose"),
        mean("matching_score", 0.1, arm="random", low=0.05, high=0.15, dataset="all"),
        mean("explained_variance", value - 0.1, low=value - 0.2, high=value, **splice),
        mean("explained_variance", 0.9, "none", 0.8, 0.95, dataset="all", strategy="drop"),
        mean("judge_score", 2.5, low=2.4, high=2.6),
        mean("judge_score", 1.1, "none", 1.0, 1.2, strategy="random"),
    ]


@pytest.fixture
def write(tmp_path):
    """Write a run's folder from overrides and changes to an ordinary finished run."""

    def write(name, *overrides, value=0.5, config=None, choices=None, provenance=None, **changed):
        base = {"sae": {"path": "mine"}, "dataset": {"paths": ["a"], "n_texts": 10}, "seed": 0}
        base |= {"overrides": list(overrides), "choices": {"objective": "both"} | (choices or {})}
        facts = {"code": "aaaa1111", "versions": VERSIONS, "git_commit": "c0ffee", "seconds": 3.5}
        facts |= {"saes": {"1": origin(1), "2": origin(2)}, "texts": {"a": {"sha256": "x"}}}
        facts |= {"model": {"revision": "r"}} | (provenance or {})
        results = Results(name, base | (config or {}), facts, status="finished")
        results.tables["means"] = frame_of(means(value))
        results.metrics = {"matching_score/folded": value}
        for field, content in changed.items():
            setattr(results, field, content)
        folder = tmp_path / "sweep" / name
        results.save(folder / "results.json")
        return folder

    return write


def sweep(write, tmp_path):
    """Four jobs of a grid."""
    write("0", value=0.5)
    write("1", "objective=decoder", value=0.6, choices={"objective": "decoder"})
    write("2", "dataset.n_texts=20", value=0.7, config={"dataset": {"n_texts": 20}})
    both = {"choices": {"objective": "decoder"}, "config": {"dataset": {"n_texts": 20}}}
    write("3", "++dataset.n_texts=20", "objective=decoder", "run_id=z", value=0.4, **both)
    return tmp_path / "sweep"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run ``saematch compare`` in an empty folder; return (exit message or None, output)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["saematch", "compare", *map(str, arguments)])
        try:
            main()
        except SystemExit as exit:
            return str(exit.code), capsys.readouterr().out
        return None, capsys.readouterr().out

    return run


def reasons(comparison):
    return {run.name: run.reason for run in comparison.left_out}


def names(comparison):
    return [run.name for run in comparison.compared]


def test_what_all_runs_share_is_said_first(write, tmp_path, command):
    saes = {str(n): {"layer": n, "release": "r"} for n in (2, 3, 4)}
    shared = {"code": "123456789", "saes": saes, "model": {"name": "m", "revision": "a"}}
    for name, n_texts in (("0", 10), ("1", 20)):
        facts = {**shared, "texts": {"web": {"n_texts": n_texts}}}
        write(name, f"seed={name}", config={"seed": int(name)}, provenance=facts)
    message, out = command(tmp_path / "sweep")
    assert message is None
    (line,) = [line for line in out.splitlines() if line.startswith("all runs:")]
    assert line == "all runs: model m; SAEs r, layers 2 to 4; code 12345678"
    assert line in (tmp_path / "sweep/comparison/index.html").read_text()


def test_parameters_and_numbers_of_a_grid(write, tmp_path, command):
    message, out = command(sweep(write, tmp_path), "--metric", "recall")
    assert message is None
    assert "4 runs compared, 0 left out" in out
    folder = tmp_path / "sweep/comparison"
    table = pandas.read_csv(folder / "comparison.csv", float_precision="round_trip")
    assert list(table.columns) == ["run", "objective", "dataset.n_texts", *MEANS]
    assert len(table) == 4 * len(means(0.5))
    settings = table[["objective", "dataset.n_texts"]].drop_duplicates().values.tolist()
    assert settings == [["both", 10], ["decoder", 10], ["both", 20], ["decoder", 20]]
    of_1 = table[(table.run == 1) & (table.metric == "matching_score")]
    assert of_1[["value", "low", "high"]].values.tolist() == [
        [0.6, 0.6 - 0.01, 0.6 + 0.02], [0.5, 0.4, 0.6], [0.1, 0.05, 0.15]
    ]  # fmt: skip
    parquet = pandas.read_parquet(folder / "comparison.parquet")
    parquet["run"] = parquet["run"].astype(int)
    pandas.testing.assert_frame_equal(parquet, table, check_dtype=False)
    runs = pandas.read_csv(folder / "runs.csv")
    assert runs["seconds"].tolist() == [3.5] * 4
    assert runs["code"].unique().tolist() == ["aaaa1111"]
    assert not list(folder.rglob("*.part"))


def test_the_page_has_every_run_and_figure(write, tmp_path, command):
    top = sweep(write, tmp_path)
    write("bad<b>", status="failed", error="ValueError: no <such> layer")
    command(top, "--metric", "judge_score", "--metric", "recall")
    page = (top / "comparison/index.html").read_text()
    for name in ("0", "1", "2", "3", "bad&lt;b&gt;"):
        assert f"<tr><td>{name}</td>" in page
    assert "no &lt;such&gt; layer" in page
    drawn = {path.stem for path in (top / "comparison/figures").glob("*.png")}
    assert drawn == {"recall", "judge_score"}
    assert all(f'<img src="figures/{name}.png"' in page for name in drawn)
    command(top, "--metric", "recall")
    left = sorted(path.name for path in (top / "comparison/figures").iterdir())
    assert left == ["recall.pdf", "recall.png", "recall.svg"], (
        "figures of the earlier comparison are gone"
    )


def test_definitions_of_metrics_come_from_the_runs(write, tmp_path, command, real_figures):
    real_figures()
    drift = Column("drift", "drift of <norms>", "lower", "nats", logged=("matches",))
    for name, value in (("0", 0.5), ("1", 0.25)):
        rows = [mean("drift", value), mean("drift", 0.125, arm="random")]
        write(
            name,
            f"seed={name}",
            config={"seed": int(name)},
            tables=Tables.of({"means": rows}, [drift]),
        )
    message, out = command(tmp_path / "sweep", "--metric", "drift")
    assert message is None
    assert "random: drift of <norms> (nats) 0.125" in out
    assert "drift of" in out and "<norms>" in out
    page = (tmp_path / "sweep/comparison/index.html").read_text()
    assert "drift of &lt;norms&gt; (nats)" in page
    svg = (tmp_path / "sweep/comparison/figures/drift.svg").read_text()
    assert "drift of &lt;norms&gt; (nats)" in svg


def test_strategies_of_other_packages_have_their_own_names(write, tmp_path, command):
    cells = {"folded": mean("drift", 0.5, dataset="all", strategy="mine"),
             "none": mean("drift", 0.25, "none", dataset="all", strategy="copy")}  # fmt: skip
    write("0", tables=Tables.of({"means": list(cells.values())}, [Column("drift", "drift")]))
    message, _ = command(tmp_path / "sweep", "--metric", "drift")
    assert message is None
    page = (tmp_path / "sweep/comparison/index.html").read_text()
    assert "<th>folded, mine</th><th>copy</th>" in page


def test_runs_that_did_not_finish_are_listed(write, tmp_path, command):
    top = sweep(write, tmp_path)
    write("4", status="failed", error="ValueError: no layer 9")
    write("5", status="running")
    (top / "6").mkdir(parents=True)
    (top / "6/run.json").write_text("{}")
    write("7").joinpath("results.json").write_text('{"name": ')
    write("8", tables=Tables.of({"saes": []}))
    write("9", tables=Tables.of({"means": [{"metric": "recall"}]}))
    jobs = [{"folder": str(n), "settings": [f"seed={n}"]} for n in (0, 6, 10)]
    metric = {"name": "matching_score/folded", "goal": "maximize"}
    plan = {"study": "s", "method": "grid", "metric": metric, "jobs": jobs}
    (top / "sweep.json").write_text(json.dumps(plan))
    comparison = collect([top])
    states = {run.name: run.state for run in comparison.runs}
    assert states == dict.fromkeys("0123", "finished") | {
        "4": "failed", "5": "unfinished", "6": "unfinished", "7": "damaged", "8": "finished",
        "9": "damaged", "10": "missing",
    }  # fmt: skip
    why = reasons(comparison)
    assert why["4"] == "ValueError: no layer 9"
    assert "7/results.json is damaged (" in why["7"]
    assert "no table of means" in why["8"]
    assert "without all of suites, arm" in why["9"]
    assert comparison.runs[-1].parameters["seed"] == 10, "as it was planned"
    best, value = comparison.best(comparison.objectives[0])
    assert (best.name, value) == ("2", 0.7)
    message, out = command(top, "--metric", "recall")
    assert message is None
    assert "best by matching_score/folded (maximize): run 2 (seed=0, objective=both, " in out
    assert "10 (missing): it was planned and never started" in out


def test_the_best_run_has_its_interval_and_the_runs_that_it_may_not_exceed(write, tmp_path):
    for name, value in (("0", 0.5), ("1", 0.69), ("2", 0.7)):
        write(name, f"seed={name}", value=value, config={"seed": int(name)})
    metric = {"name": "matching_score/folded", "goal": "maximize"}
    jobs = [{"folder": str(n), "settings": [f"seed={n}"], "point": {}} for n in range(3)]
    plan = {"study": "s", "method": "grid", "metric": metric, "jobs": jobs}
    (tmp_path / "sweep/sweep.json").write_text(json.dumps(plan))
    assert (
        "best by matching_score/folded (maximize): run 2 (seed=2): 0.700 [0.690, 0.720]; runs "
        "whose intervals overlap this one: 1"
    ) in findings(collect([tmp_path / "sweep"]))


def test_nothing_to_compare_is_an_error(write, tmp_path, command):
    write("0", status="failed", error="ValueError: no layer 9")
    assert "no run can be compared: 1 failed" in command(tmp_path)[0]
    assert not (tmp_path / "comparison").exists()
    (tmp_path / "empty").mkdir()
    assert "no run in" in command("empty")[0]
    assert "nowhere is not a folder" in command("nowhere")[0]


def test_runs_of_other_code_are_left_out(write, tmp_path):
    for name, code, torch in (("a", "aaaa1111", "2.9.0"), ("b", "bbbb2222", "2.9.0"),
                              ("c", "bbbb2222", "2.9.0"), ("d", "bbbb2222", "2.8.0")):  # fmt: skip
        versions = VERSIONS | {"torch": torch}
        write(name, f"seed={name}", provenance={"code": code, "versions": versions})
    comparison = collect([tmp_path])
    assert names(comparison) == ["b", "c"]
    assert reasons(comparison) == {
        "a": "it was made by code aaaa1111; the 2 compared by code bbbb2222",
        "d": "it was made by torch 2.8.0; the 2 compared by torch 2.9.0",
    }
    assert names(collect([tmp_path], code="aa")) == ["a"]
    with pytest.raises(ValueError, match="by the code c; there are runs of aaaa1111, bbbb2222"):
        collect([tmp_path], code="c")


def test_of_two_groups_of_equal_size_the_newer_is_kept(write, tmp_path):
    for name, when in (("a", 2000), ("b", 1000)):
        folder = write(name, provenance={"code": name})
        os.utime(folder / "results.json", (when, when))
    assert names(collect([tmp_path])) == ["a"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"saes": {"2": origin(2, "sha256:2")}},
            "its SAE of layer 2 differs (mine layer_2",
        ),
        ({"texts": {"a": {"sha256": "y"}}}, "its text set a differs (sha256 y"),
        ({"model": {"revision": "s"}}, "model"),
    ],
)
def test_runs_with_equal_settings_and_other_inputs_are_left_out(write, tmp_path, changed, words):
    write("a", "seed=1")
    write("b", "seed=2")
    write("c", "seed=3", provenance=changed)
    comparison = collect([tmp_path])
    assert names(comparison) == ["a", "b"]
    assert words in reasons(comparison)["c"]


def test_runs_whose_dtype_depended_on_the_machine_are_not_mixed(write, tmp_path):
    """A dtype that a setting names is a parameter of the runs; the dtype of ``auto`` is not."""
    for name, setting, dtype in (
        ("a", "auto", "float32"), ("b", "auto", "float32"), ("c", "auto", "bfloat16"),
    ):  # fmt: skip
        loaded = {"model": {"revision": "r", "dtype": dtype}}
        write(name, f"seed={name}", config={"model": {"dtype": setting}}, provenance=loaded)
    comparison = collect([tmp_path])
    assert names(comparison) == ["a", "b"]
    assert "r in bfloat16" in reasons(comparison)["c"]


def test_runs_with_other_numbers_of_calibration_texts_are_compared(write, tmp_path):
    write("a", "dataset.n_texts=10")
    for name, n in (("b", 10), ("c", 20)):
        halves = {"n_calibration": n // 2, "n_evaluation": n // 2}
        facts = {"texts": {"a": {"sha256": "x", "n_texts": n, **halves}}}
        write(name, f"dataset.n_texts={n}", f"seed={name}", provenance=facts)
    assert names(collect([tmp_path])) == ["a", "b", "c"]


def test_effects_of_verify_are_shown(write, tmp_path):
    rows = [*means(0.5), mean("effect", 0.3, dataset="all"), mean("off_rate", 0.2, dataset="all")]
    write("a", tables=Tables({"means": frame_of(rows)}))
    names = ["matching_score", "explained_variance", "effect", "recall", "judge_score"]
    assert metrics_of(collect([tmp_path])) == names


def test_other_saes_by_another_setting_are_compared(write, tmp_path):
    write("a", "sae.path=mine")
    config = {"sae": {"path": "yours"}}
    write("b", "sae.path=yours", config=config, provenance={"saes": {"1": origin(1, "sha256:9")}})
    comparison = collect([tmp_path])
    assert [run.parameters for run in comparison.runs] == [
        {"sae.path": "mine"}, {"sae.path": "yours"}
    ]  # fmt: skip


def test_a_group_named_as_a_column_and_lists(write, tmp_path):
    write("a", "layers=[1,3]", config={"layers": [1, 3]}, choices={"dataset": "zoo"})
    write("b", "dataset=code", "layers=[2,4]", choices={"dataset": "code"},
          config={"layers": [2, 4]})  # fmt: skip
    write("c", config={"layers": None}, choices={"dataset": "zoo"})
    comparison = collect([tmp_path])
    rows = {(row["run"], row["layers"], row["swept_dataset"]) for row in rows_of(comparison.means)}
    assert rows == {("a", "1→3", "zoo"), ("b", "2→4", "code"), ("c", "none", "zoo")}
    chosen = collect([tmp_path], ["layers=[1,3]", "layers=null"])
    assert names(chosen) == ["a", "c"]


def test_lists_of_one_number_are_numbers(write, tmp_path):
    for share in (0.1, 0.5):
        arms = {"arms": {"folded": {"quantiles": [share]}}}
        write(str(share), f"arms.folded.quantiles=[{share}]", config=arms)
    comparison = collect([tmp_path])
    assert [run.parameters["arms.folded.quantiles"] for run in comparison.runs] == [0.1, 0.5]
    assert names(collect([tmp_path], ["arms.folded.quantiles=[0.5]"])) == ["0.5"]


def test_where_against_and_metric(write, tmp_path, command):
    top = sweep(write, tmp_path)
    comparison = compare([top], tmp_path / "out", where=["objective=decoder"], metrics=["recall"])
    assert names(comparison) == ["1", "3"]
    assert list(comparison.figures) == ["recall"]
    assert "2 of 4 runs are of objective=decoder" in comparison.notes
    main_ones = ["matching_score", "explained_variance", "recall", "judge_score"]
    assert metrics_of(comparison) == main_ones
    assert {panel.against for panel in plan_panels(comparison).panels} == {"dataset.n_texts"}
    plan = plan_panels(collect([top]), "objective")
    assert [(p.against, p.fixed) for p in plan.panels] == [
        ("objective", {"dataset.n_texts": 10}), ("objective", {"dataset.n_texts": 20})
    ]  # fmt: skip
    for arguments, words in (
        (("--where", "seed=3"), "KEY one of objective, dataset.n_texts, suites"),
        (("--where", "objective=encoder"), "the values are both, decoder"),
        (("--against", "seed"), "these settings were: objective, dataset.n_texts"),
        (("--metric", "score"), "the runs have recall, matching_score, explained_variance"),
        (("--out", top / "0"), "is the folder of a run"),
    ):
        assert words in command(top, *arguments)[0]


def test_a_search_has_a_panel_for_each_parameter_with_all_its_runs(write, tmp_path):
    for n in range(9):
        write(str(n), f"objective.W_enc={0.5 + n}", f"objective.b_enc={9.5 - n}", value=n / 10)
    comparison = compare([tmp_path / "sweep"], metrics=["recall"])
    panels = plan_panels(comparison).panels
    assert [panel.against for panel in panels] == ["objective.W_enc", "objective.b_enc"]
    for panel in panels:
        values = unique_values(comparison, panel.against)
        series = run_series(comparison, panel, values)
        assert len(series) == 9
        assert {value for ((value, _),) in series} == set(values)
    assert list(comparison.figures) == ["recall"]
    assert not comparison.undrawn


def test_too_many_panels_are_refused(write, tmp_path, command):
    for n in range(9):
        write(str(n), f"seed={n}", "objective=both", config={"seed": n})
        write(f"{n}d", "objective=decoder", config={"seed": n}, choices={"objective": "decoder"})
    message, _ = command("sweep", "--against", "objective")
    assert "no figures: each would have 9 panels, more than 8" in message
    assert (tmp_path / "sweep/comparison/comparison.csv").exists(), "tables need no panels"
    assert "--where seed=0" in message
    assert command("sweep", "--metric", "recall", "--where", "seed=0")[0] is None


def test_runs_with_equal_settings_are_kept_and_noted(write, tmp_path):
    write("a", "seed=1")
    write("b", "seed=1")
    write("c", "seed=1", value=0.6)
    path = write("d", "seed=2", config={"seed": 2}) / "results.json"
    old = json.loads(path.read_text())
    del old["config"]["overrides"], old["config"]["choices"]
    path.write_text(json.dumps(old))
    notes = collect([tmp_path]).notes
    assert any("1 of the compared runs do not record" in note for note in notes)
    assert any(n.startswith("a, b, c: the same settings, different numbers") for n in notes)
    (twice,) = collect([tmp_path / "sweep/a", tmp_path / "sweep/b"]).notes
    assert twice.startswith("a, b: the same settings, identical numbers")


def test_the_mirror(write, tmp_path, command, monkeypatch):
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_ID", "not-ours")
    top = sweep(write, tmp_path)
    assert command(top, "--wandb", "--project", "p", "--metric", "recall")[0] is None
    folder = top / "comparison/wandb"
    (run,) = [r.run for r in records(folder) if r.WhichOneof("record_type") == "run"]
    assert (run.job_type, run.project) == ("compare", "p")
    assert run.run_id.startswith("compare-")
    tables = {
        path.name.partition("_")[0]: json.loads(path.read_text())
        for path in folder.glob("offline-run-*/files/media/table/tables/*.json")
    }
    assert len(tables["comparison"]["data"]) == 4 * len(means(0.5))
    assert [row[0] for row in tables["runs"]["data"]] == ["0", "1", "2", "3"]
    assert list(folder.glob("offline-run-*/files/media/images/figures/recall_*.png"))
