"""What ``saematch features`` prints."""

import re

import pandas as pd
import pytest
import torch

from hand_run import write_hand_run, write_parquet, write_verified
from matches import of_dense
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.explorer.paths import Node
from saematch.explorer.run_data import CONTEXTS, PROFILE, RunData
from saematch.explorer.terminal import print_features
from synthetic_run import write_run

PAIR, LATER = Pair.of_layers(0, 1), Pair.of_layers(1, 2)
SHIFT = Match.from_columns(torch.tensor([1, 2, 0]), 3)
SOFT = of_dense(torch.tensor([[0.25, 0.75, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
VERDICT = {**LATER.columns(), "arm": "soft", "role": "pair", "source_feature": 1,
           "target_feature": 1, "label": "SAME", "evaluation": "both are\nverbs"}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    matches = {("soft", PAIR): SOFT, ("soft", LATER): SHIFT, ("one", LATER): SHIFT}
    explanations = {
        PAIR.source: ["a \x1b[31mred\x1b[0m word", None, None],
        PAIR.target: ["[bold]cities[/bold]", "rivers", None],
    }
    folder = write_hand_run(tmp_path / "run", matches, explanations, judgements=[VERDICT])
    write_verified(folder, PAIR, [
        {"arm": "soft", "feature": 0, "partner": 1, "off_rate": 0.5, "effect": 0.6,
         "effect_low": 0.4, "effect_high": 0.8, "floor_95": 0.125, "finding": "passes"},
    ])  # fmt: skip
    write_parquet(folder / PROFILE / "0.parquet", pd.DataFrame(
        {"feature": [0, 1, 2], "density": [0.001, 0.0, 0.5], "max_activation": [7.5, None, 1.0],
         "top_tokens": ['"x" (40%)', None, None]}
    ))  # fmt: skip
    write_parquet(folder / CONTEXTS / "0.parquet", pd.DataFrame(
        {"feature": [0, 0], "rank": [1, 0], "dataset": "prose", "text": [3, 4], "start": 0,
         "tokens": [["no"], ["The", " red", "\n", "fox"]], "values": [[1.0], [0.0, 3.5, 0.0, 1.0]]}
    ))  # fmt: skip
    return RunData.open(folder)


def printed(capsys, run, layer, feature, arms=("soft", "one"), suite="default"):
    print_features(run, [Node(SaeKey(suite, layer), feature)], arms)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in lines)
    return [re.sub(r"\s+", " ", line).strip() for line in lines if line.strip()]


def test_a_feature_s_facts_path_and_partners(run, capsys):
    lines = printed(capsys, run, 0, 0)
    assert lines[:5] == [
        "feature 0 of layer 0 (3 features)",
        "explanation: a \\x1b[31mred\\x1b[0m word (me)",
        "density 0.001, max activation 7.5",
        'top tokens: "x" (40%)',
        "top context (prose 4): The[ red] fox",
    ]
    assert lines[5:7] == [
        "does it carry on in layer 1?",
        "soft: feature 1 passes: effect 0.60 [0.40, 0.80], control 0.125",
    ]
    start = lines.index("path under soft")
    assert lines[start + 1] == "layer feature effect finding explanation"
    assert lines[start + 3 : start + 6] == [
        "> 0 0 a \\x1b[31mred\\x1b[0m word", "1 1 0.60 [0.40, 0.80] passes rivers", "2 2",
    ]  # fmt: skip
    partners = lines.index("partners in layer 1 under soft")
    assert lines[partners + 1] == "feature weight off rate effect control finding explanation"
    assert lines[partners + 3 : partners + 5] == [
        "1 0.750 0.500 0.60 [0.40, 0.80] 0.125 passes rivers", "0 0.250 [bold]cities[/bold]",
    ]  # fmt: skip
    assert any(
        line.startswith("path under one") for line in lines
    )  # which did not match the feature's layer


def test_sources_partners_and_verdicts(run, capsys):
    lines = printed(capsys, run, 1, 1)
    sources = lines.index("sources in layer 0 under soft")
    assert [line.split()[:2] for line in lines[sources + 3 : sources + 5]] == [
        ["1", "1.000"], ["0", "0.750"],
    ]  # fmt: skip
    assert "partners in layer 2 under one" in lines
    assert lines[-5] == "1/1 and 2/1 (soft, pair): SAME, both are verbs"
    assert lines[-1].startswith("passes: ")
    answers = lines.index("does it carry on in layer 2?")
    assert lines[answers + 1].startswith("soft: best partner feature 2, not tested")


def test_features_without_anything_are_printed(run, capsys):
    lines = printed(capsys, run, 0, 2, ["soft"])
    assert lines[1] == "explanation: none"
    assert lines[3:5] == ["does it carry on in layer 1?", "soft: no partner"]
    assert lines[-5] == "no partners in layer 1 under soft"


def test_scores_and_wide_tables_fit_a_narrow_terminal(tmp_path, capsys, monkeypatch):
    run = RunData.open(write_run(tmp_path / "run", 3, 32, 8))
    monkeypatch.setattr("saematch.explorer.terminal.WIDTH", 80)
    print_features(run, [Node(SaeKey("default", 1), 3)], run.arms)
    tables = [line for line in capsys.readouterr().out.splitlines() if "…" in line]
    assert tables and all(len(line) <= 80 for line in tables)
    assert all(line.rstrip().endswith("…") for line in tables)  # nothing else is shortened


def test_names_cannot_control_the_terminal(tmp_path, capsys):
    row = VERDICT | {"label": "SAME\x1b[2J", "role": "pair\x1b[1A"}
    matches = {("soft", PAIR): SOFT, ("soft", LATER): SHIFT}
    run = RunData.open(write_hand_run(tmp_path / "run", matches, judgements=[row]))
    assert "\x1b" not in "".join(printed(capsys, run, 1, 1))
