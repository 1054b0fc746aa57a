"""Which pairs are judged, what stands beside them, and that scores say what was counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from chat.judge_server import JudgeServer
from conftest import N_FEATURES, random_sae
from saematch.chat.model import ChatModel
from saematch.core.match import Match
from saematch.core.pairs import NO_ARM, Pair, SaeKey
from saematch.core.tables import Tables
from saematch.evaluate.intervals import Intervals
from saematch.evaluate.weights import FoldedPair, feature_mse
from saematch.explain.explanations import Explanation
from saematch.judge.connect import connect
from saematch.judge.design import Item, Judging, path_items, table_items
from saematch.judge.judging import Judgement, judge_matches
from saematch.judge.scores import judge_tables, score_matches
from saematch.judge.verdicts import Verdict
from saematch.matching.matches import MatchSet

LAYERS = (0, 1, 2)


class Words:
    """The explanation of feature i is ``word i``; features 3 and 9 of layer 1 have none."""

    def __init__(self, explainers=("a", "b")):
        self.explainers = explainers

    def features(self, sae):
        return [i for i in range(N_FEATURES) if sae.layer != 1 or i not in (3, 9)]

    asks_llm = False

    def of(self, wanted, others=False):
        return {
            key: tuple(
                Explanation(f"word{key.feature}" + " more" * n, who)
                for n, who in enumerate(self.explainers)
            )
            for key in wanted
            if key.feature in self.features(key.sae)
        }


def match_of(columns):
    return Match.from_columns(torch.tensor(columns), N_FEATURES)


@pytest.fixture
def saes():
    return {SaeKey("default", n): random_sae(n, layer=n) for n in LAYERS}


@pytest.fixture
def matches():
    """``same`` pairs equal features; ``next`` each with the one after it, the last with none."""
    same = list(range(N_FEATURES))
    after = [*range(1, N_FEATURES), -1]
    pairs = (Pair.of_layers(0, 1), Pair.of_layers(1, 2))
    by_arm = {name: {p: match_of(columns) for p in pairs}
              for name, columns in (("same", same), ("next", after))}  # fmt: skip
    return MatchSet(pairs, by_arm)


@pytest.fixture
def server():
    server = JudgeServer()
    yield server
    server.close()


def judged(matches, server, tmp_path, explanations=None, second=None, chains=True, **judging):
    chat = connect(ChatModel("judge-1", server.url), tmp_path / "s")
    spec = Judging(**{"n_paths": 10, "random": 5, "identity": 4, "ceiling": 3} | judging)
    return judge_matches(matches, chains, spec, explanations or Words(), (chat, second), Tables())


def test_paths_are_followed_from_match_to_match(matches):
    items = path_items(matches, True, Judging(n_paths=6), Words(), np.random.default_rng(0))
    first = [i for i in items if i.pair.source.layer == 0]
    for arm in ("same", "next"):
        chosen = {i.path: i.source_feature for i in first if i.arm == arm}
        step = 0 if arm == "same" else 1
        for item in items:
            if item.arm == arm:
                assert item.source_feature == chosen[item.path] + step * item.pair.source.layer
                assert item.target_feature == item.source_feature + step
                assert item.start == 0
    assert {i.path: i.source_feature for i in first if i.arm == "same"} == dict(
        enumerate(dict.fromkeys(i.source_feature for i in first if i.arm == "same"))
    )


def test_a_path_ends_where_there_is_no_partner(matches):
    items = path_items(matches, True, Judging(n_paths=24), Words(), np.random.default_rng(0))
    lengths = [sum(i.arm == "next" and i.pair.source.layer == n for i in items) for n in (0, 1)]
    assert lengths == [N_FEATURES - 1, N_FEATURES - 2]


def test_without_chains_every_pair_asks_for_the_first_layers_features(matches):
    same = match_of(list(range(N_FEATURES)))
    pairs = (Pair.of_layers(0, 1), Pair.of_layers(0, 2), Pair.of_layers(1, 2))
    starting = MatchSet(pairs, {"same": dict.fromkeys(pairs, same)})
    items = path_items(starting, False, Judging(n_paths=5), Words(), np.random.default_rng(0))
    drawn = [[i.source_feature for i in items if i.pair == pair] for pair in pairs]
    assert drawn[0] == drawn[1] != drawn[2]
    assert not {3, 9} & set(drawn[2]), "drawn from explained features"
    assert {(i.pair.source.layer, i.start) for i in items} == {(0, 0), (1, 1)}


def test_every_item_has_a_verdict_and_equal_questions_are_asked_once(matches, server, tmp_path):
    judgements = judged(matches, server, tmp_path, n_paths=24, swapped=0.5, repeated=0.5)
    roles = [judgement.item.role for judgement in judgements]
    assert roles.count("pair") == 24 + 24 + 23 + 22
    assert (roles.count("random"), roles.count("identity"), roles.count("ceiling")) == (10, 8, 9)
    n_questions = len({j.source.text + "|" + j.target.text for j in judgements
                       if j.item.role == "pair" and j.source and j.target})  # fmt: skip
    assert roles.count("repeated") == round(n_questions / 2)
    assert roles.count("swapped") == round(
        len({(j.source.text, j.target.text) for j in judgements if j.item.role == "pair"
             and j.source and j.target and j.source.text != j.target.text}) / 2
    )  # fmt: skip
    for j in judgements:
        missing = j.source is None or j.target is None
        assert (j.verdict.label == "UNEXPLAINED") == missing
        if not missing:
            same = j.source.text == j.target.text
            twice = j.item.role == "ceiling"
            assert j.verdict.label == ("SAME" if same else "MAYBE" if twice else "DIFFERENT")
    unexplained = {
        (j.item.pair, j.item.arm) for j in judgements if j.verdict.label == "UNEXPLAINED"
    }
    assert {arm for _, arm in unexplained} == {"same", "next"}
    assert max(server.delivered.values()) == 2, "what is repeated is asked twice, all else once"


def test_an_arm_of_which_nothing_is_judged_is_named(matches, server, tmp_path, caplog):
    """Paths begin at the first layer, where this arm has no match."""
    pairs = matches.pairs
    by_arm = matches.by_arm | {"late": {pairs[1]: matches.by_arm["same"][pairs[1]]}}
    rows = judged(MatchSet(pairs, by_arm), server, tmp_path)
    assert not [row for row in rows if row.item.arm == "late"]
    assert caplog.messages.count(
        "no pair of late is judged: no feature of its paths has a partner"
    ) == 1  # fmt: skip


def test_the_ceiling_is_another_explainer_or_a_paraphrase(matches, server, tmp_path):
    judgements = judged(matches, server, tmp_path)
    ceiling = [j for j in judgements if j.item.role == "ceiling"]
    assert {(j.source.explainer, j.target.explainer) for j in ceiling} == {("a", "b")}
    assert not any("<note>" in body["messages"][-1]["content"] for body in server.bodies)
    judgements = judged(matches, server, tmp_path, Words(("a",)))
    assert not any(j.item.role == "ceiling" for j in judgements)
    ceiling = [j for j in judgements if j.item.role == "paraphrase"]
    assert {(j.source.explainer, j.target.explainer) for j in ceiling} == {("a", "judge-1")}
    assert any("<note>" in body["messages"][-1]["content"] for body in server.bodies)


def test_paraphrases_that_cannot_be_read_are_reported(matches, tmp_path, caplog):
    server = JudgeServer(answer=lambda body: "I cannot:")
    judged(matches, server, tmp_path, Words(("a",)))
    server.close()
    (line,) = [line for line in caplog.messages if "paraphrases cannot be read" in line]
    assert line.startswith("judge-1: 8 of 8 ")
    assert line.endswith("their features have no ceiling: 'I cannot:'")


def test_swapped_pairs_show_position_bias(matches, tmp_path):
    """A judge that answers SAME if the notes are in alphabetical order."""

    def biased(body):
        text = body["messages"][-1]["content"]
        first, second = text.index("word"), text.rindex("word")
        label = 3 if text[first : first + 6] <= text[second : second + 6] else 1
        return f'{{"evaluation": "", "label": {label}}}'

    server = JudgeServer(answer=biased)
    judgements = judged(matches, server, tmp_path, swapped=1.0, repeated=1.0)
    server.close()
    saes = {SaeKey("default", n): random_sae(n, layer=n) for n in LAYERS}
    rows = judge_tables(judgements, saes, Intervals()).rows("judge_agreement")
    by_role = {row["compared"]: row for row in rows}
    assert by_role["swapped"]["agreement"] < 1
    assert by_role["repeated"]["agreement"] == 1
    scores = {j.item: j.verdict.score for j in judgements}
    differences = [
        score - scores[replace(item, role="pair")]
        for item, score in scores.items()
        if item.role == "swapped"
    ]
    assert by_role["swapped"]["score_difference"] == pytest.approx(np.mean(differences))


def test_a_second_judge_reads_the_same_pairs(matches, server, tmp_path):
    other = JudgeServer(answer=lambda body: '{"evaluation": "", "label": 3}', models=("judge-2",))
    second = connect(ChatModel("judge-2", other.url), tmp_path / "s")
    judgements = judged(matches, server, tmp_path, second=second)
    other.close()
    pairs = {j.item: j for j in judgements if j.item.role == "pair"}
    second_judgements = [j for j in judgements if j.item.role == "second"]
    assert len(second_judgements) == len(
        {(j.source, j.target) for j in pairs.values() if j.source and j.target}
    )
    for j in second_judgements:
        first = pairs[replace(j.item, role="pair")]
        assert (j.source, j.target) == (first.source, first.target)
        assert j.verdict.label == "SAME"


def judgement(role, path, label, pair=(0, 1), arm="same", feature=0):
    item = Item(role, Pair.of_layers(*pair), arm, 0, path, feature, feature)
    explanation = Explanation("x", "a")
    return Judgement(item, explanation, explanation, Verdict(label))


def test_scores_by_hand(saes):
    """Pair 0-1 of three paths: SAME, MAYBE, UNPARSED; 1-2: DIFFERENT, SAME, REFUSED."""
    labels = {(0, 1): ("SAME", "MAYBE", "UNPARSED"), (1, 2): ("DIFFERENT", "SAME", "REFUSED")}
    judgements = [judgement("pair", path, label, pair)
                  for pair, of_pair in labels.items()
                  for path, label in enumerate(of_pair)]  # fmt: skip
    judgements += [judgement("random", n, "DIFFERENT", arm=NO_ARM) for n in range(4)]
    tables = judge_tables(judgements, saes, Intervals())
    rows = {(row["role"], row["source_layer"]): row for row in tables.rows("judge_scores")}
    first, overall = rows["pair", 0], rows["pair", None]
    assert first["judge_score"] == 2.5
    assert first["same_share"] == 0.5
    counts = ("n_judgements", "n_same", "n_maybe", "n_different", "n_unparsed", "n_refused")
    assert [first[name] for name in counts] == [3, 1, 1, 0, 1, 0]
    assert overall["judge_score"] == pytest.approx((3 + 2 + 1 + 3) / 4)
    assert [overall[name] for name in counts] == [6, 2, 1, 1, 1, 1]
    assert rows["random", None]["judge_score"] == rows["random", None]["judge_score_high"] == 1
    assert first["judge_score_low"] <= 2.5 <= first["judge_score_high"]
    matches = [
        Pair.of_layers(n, n + 1).columns() | {"arm": arm}
        for n in (0, 1)
        for arm in ("same", "other")
    ]
    tables.join(Tables.of({"matches": matches}))
    score_matches(tables)
    same, other, *_ = tables.rows("matches")
    assert (same["judge_score"], same["n_same"]) == (2.5, 1)
    assert other["judge_score"] is None
    assert tables.column("judge_score").logged == ("matches",)


def test_intervals_are_over_paths_not_over_judgements(saes):
    """Ten steps of each path with one label: as wide as with one step, not narrower."""
    few = [judgement("pair", path, "SAME" if path % 2 else "DIFFERENT") for path in range(20)]
    many = [replace(j, item=replace(j.item, pair=pair)) for j in few
            for pair in (Pair.of_layers(0, 1), Pair.of_layers(1, 2))]  # fmt: skip
    widths = []
    for judgements in (few, many):
        scores = judge_tables(judgements, saes, Intervals()).rows("judge_scores")
        (row,) = (r for r in scores if r["source_layer"] is None)
        widths.append(row["judge_score_high"] - row["judge_score_low"])
    assert widths[0] == pytest.approx(widths[1])


def test_contrasts_are_paired(saes):
    same = [judgement("pair", path, "MAYBE" if path % 2 else "SAME") for path in range(20)]
    other = [judgement("pair", path, "DIFFERENT" if path % 2 else "MAYBE", arm="other")
             for path in range(20)]  # fmt: skip
    (row,) = judge_tables([*same, *other], saes, Intervals()).rows("judge_contrasts")
    assert [row[f"judge_score_difference{end}"] for end in ("", "_low", "_high")] == (
        pytest.approx([1, 1, 1])
    )


def test_errors_by_label_are_those_of_the_pairs(saes):
    labels = ["SAME", "SAME", "DIFFERENT", "UNPARSED"]
    judgements = [judgement("pair", n, label, feature=n) for n, label in enumerate(labels)]
    tables = judge_tables(judgements, saes, Intervals(n_replicates=0))
    errors = feature_mse(FoldedPair(saes[SaeKey("default", 0)], saes[SaeKey("default", 1)]),
                         match_of(list(range(N_FEATURES)))).tolist()  # fmt: skip
    assert [row["mse_W_dec"] for row in tables.rows("judgements")] == pytest.approx(errors[:4])
    rows = {row["label"]: row for row in tables.rows("mse_by_label")}
    assert rows["SAME"]["mse_mean"] == pytest.approx((errors[0] + errors[1]) / 2)
    assert rows["SAME"]["mse_median"] == pytest.approx((errors[0] + errors[1]) / 2)
    assert rows["DIFFERENT"]["mse_q25"] == pytest.approx(errors[2])
    assert [rows[label]["n_pairs"] for label in ("DIFFERENT", "MAYBE", "SAME")] == [1, 0, 2]
    assert rows["MAYBE"]["mse_mean"] is None


def test_a_pair_that_two_paths_go_through_counts_once_by_label(saes):
    """The mean score still counts both paths."""
    judgements = [judgement("pair", path, "SAME", feature=4) for path in (0, 1)]
    judgements.append(judgement("pair", 2, "SAME", feature=5))
    tables = judge_tables(judgements, saes, Intervals(n_replicates=0))
    errors = [row["mse_W_dec"] for row in tables.rows("judgements")]
    (same,) = (row for row in tables.rows("mse_by_label") if row["label"] == "SAME")
    assert (same["n_pairs"], same["mse_mean"]) == (2, pytest.approx((errors[0] + errors[2]) / 2))
    assert tables.rows("judge_scores")[0]["n_judgements"] == 3


def test_paths_of_each_suite_begin_at_its_own_first_layer():
    features = {"path": 0, "source_feature": 1, "target_feature": 2, "arm": "same"}
    pairs = [Pair.of_layers(0, 1), Pair.of_layers(1, 2), Pair.of_layers(4, 5, "wide"),
             Pair.of_layers(5, 6, "wide")]  # fmt: skip
    items = table_items("pair", [{**pair.columns(), **features} for pair in pairs], "path")
    assert [item.start for item in items] == [0, 0, 4, 4]


def test_scores_by_explainer_pair(saes):
    same, other = judgement("pair", 0, "SAME"), judgement("pair", 1, "DIFFERENT")
    other = replace(other, target=Explanation("x", "b"))
    rows = judge_tables([same, other], saes, Intervals(n_replicates=0)).rows("judge_explainers")
    assert [(r["source_explainer"], r["target_explainer"], r["judge_score"]) for r in rows] == [
        ("a", "a", 3.0),
        ("a", "b", 1.0),
    ]


def test_nothing_scored_is_no_number(saes):
    tables = judge_tables([judgement("pair", 0, "REFUSED")], saes, Intervals())
    rows = tables.rows("judge_scores")
    assert all(row["judge_score"] is None for row in rows)
    assert rows[0]["n_refused"] == 1


@pytest.mark.parametrize("bad", [{"n_paths": 0}, {"random": -1}, {"swapped": 1.5}])
def test_judging_refuses_what_cannot_be(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Judging(**bad)
