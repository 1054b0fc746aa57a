"""Which pairs are judged where features have several partners."""

import numpy as np
import pytest

from chat.judge_server import JudgeServer
from conftest import N_FEATURES, random_sae
from judge.test_judging import Words
from matches import halves, permutation, soft
from saematch.chat.model import ChatModel
from saematch.core.pairs import Pair
from saematch.core.tables import Tables
from saematch.evaluate.evaluation import Subject
from saematch.evaluate.following import begin, follow
from saematch.evaluate.intervals import Intervals
from saematch.evaluate.paths import Paths
from saematch.judge.connect import connect
from saematch.judge.design import Judging, path_items
from saematch.judge.judging import explain_tables, judge_matches
from saematch.judge.scores import judge_tables
from saematch.matching.matches import MatchSet
from saematch.report.frames import where
from saematch.sae.suites import SaeShelf

PAIRS = (Pair.of_layers(0, 1), Pair.of_layers(1, 2))
MATCHES = MatchSet(PAIRS, {
    "soft": dict(zip(PAIRS, (soft(1), soft(2)), strict=True)),
    "halves": dict.fromkeys(PAIRS, halves()),
    "permutation": dict.fromkeys(PAIRS, permutation(0)),
})  # fmt: skip


def items_of(chains=True, **judging):
    spec = Judging(**{"n_paths": 4} | judging)
    return path_items(MATCHES, chains, spec, Words(), np.random.default_rng(0))


def test_every_entry_of_a_followed_feature_is_one_pair():
    items = items_of(breadth=2)
    drawn = [i.source_feature for i in items if i.arm == "permutation" and i.pair == PAIRS[0]]
    for arm, of_arm in MATCHES.by_arm.items():
        held = begin(drawn)
        for pair in PAIRS:
            steps, held = follow(held, of_arm[pair], 2)
            of_pair = [i for i in items if i.arm == arm and i.pair == pair]
            assert [(i.path, i.source_feature, i.target_feature) for i in of_pair] == [
                (step.path, step.source_feature, step.target_feature) for step in steps
            ]
            assert {i.start for i in of_pair} == {0}
    n_pairs = {arm: sum(i.arm == arm for i in items) for arm in MATCHES.by_arm}
    assert n_pairs["permutation"] == 4 * 2
    assert n_pairs["soft"] == 4 * 3 + 4 * 2 * 3


def test_without_chains_every_pair_begins_anew():
    items = items_of(chains=False)
    for pair in PAIRS:
        of_pair = [i for i in items if i.arm == "halves" and i.pair == pair]
        assert {i.path for i in of_pair} == {0, 1, 2, 3}
        assert {i.target_feature - i.source_feature for i in of_pair} == {0, 1}


def test_every_entry_has_a_verdict_in_the_tables(tmp_path):
    server = JudgeServer()
    chat = connect(ChatModel("judge-1", server.url), tmp_path / "s")
    saes = {key: random_sae(key.layer, layer=key.layer) for pair in PAIRS for key in pair}
    spec = Judging(n_paths=4, breadth=2, random=2, identity=2, ceiling=1)
    subject = Subject(SaeShelf.of(saes), MATCHES, {}, {})
    with_paths = Paths(n_paths=4, breadth=2).tables(subject, None)
    n_steps = len(with_paths["paths"])
    for tables, n_pairs in ((Tables(), len(items_of(breadth=2))), (with_paths, n_steps)):
        judgements = judge_matches(MATCHES, True, spec, Words(), (chat, None), tables)
        pairs = [j for j in judgements if j.item.role == "pair"]
        assert len(pairs) == n_pairs
        judged = judge_tables(judgements, saes, Intervals())
        of_pairs = where(judged["judgements"], role="pair")
        assert len(of_pairs) == n_pairs
        assert (of_pairs["mse_W_dec"] > 0).all()
        overall = where(judged["judge_scores"], role="pair", source_layer=None)
        assert overall["n_judgements"].sum() == n_pairs
    explain_tables(with_paths, Words(), judgements)
    paths = with_paths.rows("paths")
    server.close()
    assert all(row["label"] for row in paths)
    for row in paths:
        same = row["source_feature"] == row["target_feature"]
        unexplained = {(1, 3), (1, 9)} & {(row["source_layer"], row["source_feature"]),
                                          (row["target_layer"], row["target_feature"])}  # fmt: skip
        assert row["label"] == ("UNEXPLAINED" if unexplained else "SAME" if same else "DIFFERENT")


def test_a_breadth_that_holds_nothing_is_refused():
    assert Judging().breadth == Paths().breadth == 5
    with pytest.raises(ValueError, match=r"judging\.breadth=0"):
        Judging(breadth=0)
    assert len(items_of(n_paths=N_FEATURES)) > 0
