"""Every experiment at a tiny size: tables as the docs say, figures, and the same numbers twice."""

import json
import re
import zlib
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from chat.judge_server import JudgeServer
from conftest import tiny_overrides
from saematch.app.configuration import CONF, build
from saematch.core.pairs import PAIR_COLUMNS, pair_of, suites_of
from saematch.core.results import Results
from saematch.evaluate.co_activation import SCORES
from saematch.evaluate.verify_tables import HINDSIGHT, LEARNED, NEAR_MISS
from saematch.judge.verdicts import LABELS
from saematch.report import match_rules
from saematch.report.claims import CLAIMS
from saematch.report.rules import Finding
from saematch.runs.resuming import finished_as
from saematch.runs.run import run

EXPERIMENTS = sorted(path.stem for path in Path(CONF, "experiment").glob("*.yaml"))
JUDGED = {name: name for name in ("judge_layers", "mse_by_label")} | {
    "persistence_judged": "persistence"
}
"""Judged runs of an experiment."""
BRING_SAES = {"sparsity", "similar_l0", "llama", "planted"}
"""Experiments that need SAEs of their own; they run on the embedded model."""
SMALL = ["dataset.n_texts=3", "dataset.max_tokens=16", "logger=none", "intervals.n_replicates=20",
         "trainer.accelerator=cpu", "cache=null", "calibration.share=0.3"]  # fmt: skip
DOCS = Path(__file__).parents[1] / "docs"
ENDS = r"_(low|high|q25|q75)$"
"""Endings of columns that belong to a metric's column."""


def any_label(body):
    """Return any label; the same two texts get the same label in either order."""
    prompt = body["messages"][-1]["content"]
    explanations = sorted(re.findall(r"<explanation_.>(.*?)</explanation_.>", prompt))
    label = 1 + zlib.crc32("".join(explanations).encode()) % 3
    return json.dumps(
        {"evaluation": "", "label": label} if explanations else {"paraphrase": prompt}
    )


@pytest.fixture(scope="module")
def judge():
    server = JudgeServer(answer=any_label)
    yield ["judge=local", f"judge.base_url={server.url}", "judging.n_paths=6", "judging.random=4",
           "judging.identity=3", "judging.ceiling=2"]  # fmt: skip
    server.close()


def settings(experiment, tiny, judge=()):
    preset = JUDGED.get(experiment, experiment)
    if experiment in BRING_SAES - {"planted"}:
        own = ["layers=[3,4]"] if experiment == "sparsity" else ["layers=[2,3,4]"]
        return [f"+experiment={experiment}", *own, *SMALL, "judge=none"]
    base = tiny_overrides(tiny) if experiment != "planted" else []
    layers = ["setting.pair=[1,2]", "setting.starts=[0,1]", "setting.path=[0,1,2,3]",
              "setting.judged=[0,1,2,3]", "setting.labelled=[0,2]"]  # fmt: skip
    judged = [*judge, f"name={experiment}"] if experiment in JUDGED else []
    if experiment == "leaderboard":  # few of its arms: other tests run each of them
        judged = ["arms=[cosine,written_share,folded,random]"]
    if experiment == "explore":  # its judge's tables are those of the judged experiments
        judged = ["judge=none"]
    return [f"+experiment={preset}", *base, *layers, *SMALL, *judged]


@pytest.fixture(scope="module")
def finished(tiny, judge, tmp_path_factory):
    """Run an experiment once, in its own folder."""
    done = {}

    def results(experiment, again=False):
        if (experiment, again) not in done:
            folder = tmp_path_factory.mktemp(experiment)
            drawn = ["figures=[]"] if again else []
            parts, config = build([*settings(experiment, tiny, judge), *drawn])
            run(parts, config, folder)
            assert finished_as(folder, config)
            assert not finished_as(folder, config | {"seed": 5})
            done[experiment, again] = parts, Results.load(folder / "results.json"), folder
        return done[experiment, again]

    return results


@pytest.mark.parametrize("experiment", [*EXPERIMENTS, "persistence_judged"])
def test_tables_have_the_rows_that_the_docs_promise(finished, experiment):
    parts, results, _ = finished(experiment)
    tables = results.tables
    pairs = {pair_of(r) for r in tables.rows("matches")}
    keys = {(r["suite"], r["layer"]) for r in tables.rows("layers")}
    n_arms, n_pairs = len(parts.arms), len(pairs)
    expected = {"matches": n_pairs * n_arms, "layers": len(keys)}
    n_sets = 1 if experiment not in ("sparsity", "similar_l0", "llama") else 3
    if "co_activation" in parts.evaluations:
        expected["activations"] = n_pairs * n_arms * (n_sets + 1)
        n_contrasts = n_arms * (n_arms - 1) // 2
        if parts.evaluations["co_activation"].contrasts:
            expected["activation_contrasts"] = n_pairs * n_contrasts * (n_sets + 1)
    if "skipping" in parts.evaluations:
        skipping = parts.evaluations["skipping"]
        matchless = skipping.strategies
        decode = {n: skipping.decode or arm.decode for n, arm in parts.arms.items()}
        cells = sum(len(decode[n]) * (1 + len(a.quantiles)) for n, a in parts.arms.items())
        expected["strategies"] = n_pairs * n_sets * (cells + len(matchless))
        contrasts = {
            frozenset({(a, s, q), (b, t, q)})
            for a, arm in parts.arms.items() for s in arm.decode for q in (None, *arm.quantiles)
            for b, two in parts.arms.items() for t in two.decode
            if (a == b) != (s == t) and q in (None, *two.quantiles)
        }  # fmt: skip
        n_contrasts = len(contrasts) + cells * len(matchless)
        if skipping.contrasts:
            expected["contrasts"] = n_pairs * n_sets * n_contrasts
    if "features" in parts.evaluations:
        expected["feature_mse_histogram"] = n_pairs * n_arms * 60
        expected["features"] = n_pairs * n_arms * 20
    if "paths" in parts.evaluations:
        expected["paths"] = n_pairs * n_arms * min(20, tables.rows("layers")[0]["n_live"])
    if "profile" in parts.evaluations:
        expected["profile"] = len(keys)
    if "planted" in parts.evaluations:
        expected["planted"] = n_pairs * sum(len(a.decode) for a in parts.arms.values())
    if "verify" in parts.evaluations:
        expected |= verify_rows(parts, tables)
    if "leaderboard" in parts.evaluations:
        expected |= leaderboard_rows(parts, tables)
    if experiment in JUDGED:
        expected |= judged_rows(parts, tables)
    expected["means"] = rows_of_means(parts, tables, n_sets)
    assert {name: len(rows) for name, rows in tables.items()} == expected
    text = "".join((DOCS / page).read_text("utf-8") for page in ("experiments.md", "tables.md"))
    assert all(f"| `{name}` |" in text for name in (*tables, JUDGED.get(experiment, experiment)))


@pytest.mark.parametrize("experiment", [*EXPERIMENTS, "persistence_judged"])
def test_the_docs_name_every_metric_and_column(finished, experiment):
    _, results, _ = finished(experiment)
    text = "".join((DOCS / page).read_text("utf-8") for page in ("tracking.md", "columns.md"))
    named = {name.partition("/")[0] for line in re.findall("^[|].*$", text, re.M)
             for name in re.findall("`(.*?)`", line)}  # fmt: skip
    named |= {"suite", "suites", *PAIR_COLUMNS, "arm", "dataset", "strategy", "quantile"}
    named |= {f"n_{label.lower()}" for label in LABELS}
    assert {metric.partition("/")[0] for metric in results.metrics} <= named
    for table, frame in results.tables.items():
        assert table in named
        columns = {name if name in named else re.sub(ENDS, "", name) for name in frame}
        assert columns <= named, table


@pytest.mark.parametrize("experiment", ["matching_score", "judge_layers", "sparsity"])
def test_flat_metrics_are_those_of_the_table_means(finished, experiment):
    _, results, _ = finished(experiment)
    compared = set()
    for row in results.tables.rows("means"):
        if row["strategy"] is None and row["dataset"] in (None, "all"):
            suffix = "" if row["suites"] == "default" else f"/{row['suites']}"
            name = f"{row['metric']}/{row['arm']}{suffix}"
            assert results.metrics[name] == pytest.approx(row["value"], rel=1e-12), name
            compared.add(row["metric"])
    assert compared >= ({"judge_score"} if experiment == "judge_layers" else {"matching_score"})


def rows_of_means(parts, tables, n_sets):
    """Return the number of rows that the docs promise."""
    weights = {
        (suites_of(row), row["arm"], metric)
        for row in tables.rows("matches")
        for metric in (
            column.name
            for column in tables.columns.values()
            if "matches" in column.logged and not column.interval
        )
        if row.get(metric) is not None
    }
    keys = {suites_of(row) for row in tables.rows("matches")}
    n_rows = len(weights)
    if "activations" in tables:
        n_rows += len(keys) * len(parts.arms) * (n_sets + 1) * len(SCORES)
    cells = {(suites_of(r), r["arm"], r["strategy"], r["quantile"])
             for r in tables.rows("strategies")}  # fmt: skip
    n_rows += len(cells) * (n_sets + 1) * 2
    if "verify" in tables:
        n_rows += len(keys) * len(parts.arms) * 3
    return n_rows + 2 * sum(row["target_layer"] is None for row in tables.rows("judge_scores"))


def verify_rows(parts, tables):
    """Return the numbers of rows that the docs promise of a run with ``verify``."""
    removed = Counter((row["arm"], row["k"]) for row in tables.rows("verify")
                      if (row["edit"], row["sampling"]) == ("remove", "feature"))  # fmt: skip
    (n_pairs,) = set(removed.values())
    verify = parts.evaluations["verify"]
    references = {NEAR_MISS, HINDSIGHT} | ({LEARNED} if verify.n_learning else set())
    assert {arm for arm, _ in removed} == {*parts.arms, *references}
    assert all(k == 1 for arm, k in removed if arm in references | {"folded", "random"})
    assert {k for _, k in removed} <= set(verify.partners)
    features = verify.features
    n_samples = 2 if features is None and verify.n_token_events else 1
    shared = [k for (_, k), (_, other) in combinations(removed, 2) if k == other]
    strata = {(row["arm"], row["k"], row["stratum"]) for row in tables.rows("verify_strata")}
    assert {stratum for *_, stratum in strata} <= {1, 2, 3, 4}
    n_arms = n_pairs * len(parts.arms)
    most = {"verify_changes": 200 * n_arms, "verify_direct": n_arms, "verify_joint": n_arms,
            "verify_verdicts": n_arms, "verify_correlations": 4 * n_arms}  # fmt: skip
    assert all(0 <= len(tables.get(name, ())) <= n_rows for name, n_rows in most.items())
    return {
        "verify": n_pairs * len(removed) * (n_samples + 3 * verify.controls),
        **({"verify_contrasts": n_pairs * n_samples * len(shared)} if verify.details else {}),
        "verify_strata": len(tables["verify_strata"]),
        **({"verify_injection": n_arms} if verify.n_injections else {}),
        "verify_counts": n_pairs,
        **({} if features is None else {"verify_features": n_arms * len(features)}),
        **{name: len(tables[name]) for name in most if name in tables},
    }


def leaderboard_rows(parts, tables):
    """Return the numbers of rows that the docs promise of a run with ``leaderboard``."""
    n_matches = len(tables["matches"])
    board = tables["leaderboard"]
    assert set(board["arm"]) == set(parts.arms)
    keys = ["suites", "by", "part", "metric", "strategy", "k", "partners"]
    ranked = board[board["rank"] == 1].drop_duplicates(keys)
    return {
        "leaderboard": len(board),
        "leaderboard_winners": len(ranked),
        "leaderboard_arms": len(parts.arms),
        "match_costs": n_matches,
    }


def judged_rows(parts, tables):
    """Rows that the docs promise of a judged run without partial matches."""
    pairs = {(r["source_layer"], r["target_layer"]) for r in tables.rows("matches")}
    layers = {layer for pair in pairs for layer in pair}
    arms = parts.judging.arms or list(parts.arms)
    n_pairs = len(arms)
    items = Counter(row["role"] for row in tables.rows("judgements"))
    assert items["pair"] == len(pairs) * n_pairs * 6
    assert items["random"] == len(pairs) * 4
    assert items["identity"] == len(pairs) * 3
    twice = {(row["source_layer"], row["role"]) for row in tables.rows("judgements")
             if row["role"] in ("ceiling", "paraphrase")}  # fmt: skip
    assert items["ceiling"] + items["paraphrase"] == len(layers) * 2
    assert {layer for layer, _ in twice} == layers
    assert 0 < items["swapped"] <= items["repeated"]
    return {
        "judgements": items.total(),
        "judge_scores": len(pairs) * (n_pairs + 2)
        + len(twice)
        + n_pairs
        + 2
        + len({role for _, role in twice}),
        "judge_contrasts": len(pairs) * n_pairs * (n_pairs - 1) // 2,
        "judge_agreement": 2,
        "judge_explainers": len(
            {
                (row["role"], row["arm"], row["source_explainer"], row["target_explainer"])
                for row in tables.rows("judgements")
                if row["role"] in ("pair", "random", "identity", "ceiling", "paraphrase")
                and row["source_explainer"]
                and row["target_explainer"]
            }
        ),
        "mse_by_label": len(pairs) * n_pairs * 3,
    }


@pytest.mark.parametrize("experiment", [*EXPERIMENTS, "persistence_judged"])
def test_figures_and_intervals(finished, experiment):
    parts, results, folder = finished(experiment)
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}
    without = {"judge_controls"} if experiment == "persistence" else set()
    assert drawn == set(parts.figures) - without
    measured = [name.removesuffix("_low") for name in results.tables.get("strategies", [])
                if name.endswith("_low")]  # fmt: skip
    for row in results.tables.rows("strategies"):
        for metric in measured:
            assert row[f"{metric}_low"] <= row[f"{metric}_high"], metric
    assert "skipping" not in parts.evaluations or "explained_variance" in measured


@pytest.mark.parametrize("experiment", ["paths", "planted", "judge_layers"])
def test_the_same_seed_gives_the_same_numbers(finished, experiment):
    first, again = (finished(experiment, again)[1] for again in (False, True))
    assert first.tables.keys() == again.tables.keys()
    for table in first.tables:
        assert first.tables.rows(table) == again.tables.rows(table), table
    assert first.metrics == again.metrics


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.experiment}: {claim.says}")
def test_every_rule_decides(finished, claim):
    """SAEs are random, so this only tests that each rule finds its numbers and states them."""
    finding = claim.check(finished(claim.experiment)[1].tables)
    if claim.rule_on is match_rules.recall_almost_whole:
        assert finding == Finding(None, "undecided: no recall"), "nobody knows the truth of these"
        return
    assert isinstance(finding.agrees, bool)
    assert re.search(r"\d", finding.seen)


def test_matches_are_shared_between_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = []
    for experiment in ("mse", "matching_score"):
        parts, config = build([*settings(experiment, tiny)[:-1], "cache=shared", "figures=[]"])
        results = run(parts, config, tmp_path / experiment)
        counts.append(results.provenance["matches"])
    assert counts == [{"solved": 12}, {"read": 12}]


def test_metrics_name_the_set_the_start_and_the_quantile(finished):
    assert "explained_variance/texts/folded/permute@0.1" in finished("quantiles")[1].metrics
    assert "matching_score/folded/from_0" in finished("persistence")[1].metrics
    assert "explained_variance/prose/folded/permute/l0_10" in finished("sparsity")[1].metrics
    assert "matching_score/folded" in finished("matching_score")[1].metrics
