"""Word overlap judges without LLM: by hand, both ways, and in a whole run."""

import json
from itertools import product

import pytest

from conftest import N_FEATURES, N_LAYERS
from saematch.chat.questions import Question
from saematch.core.results import Results
from saematch.explain.words import words
from saematch.judge.connect import connect
from saematch.judge.overlap import WordOverlap
from saematch.judge.prompts import JUDGE
from saematch.judge.verdicts import Verdict, read_verdict

RUN = ["evaluations=[explain]", "arms=[folded,random]", "intervals.n_replicates=20", "logger=none",
       "run_id=a", "figures=[]", "layers=[0,1]", "judge=overlap", "judging.swapped=1.0",
       "judging.repeated=0.5"]  # fmt: skip


def judge(tmp_path, **thresholds):
    return connect(WordOverlap(**thresholds), tmp_path / "s")


def judged(judge, *texts):
    question = Question(JUDGE, texts)
    return read_verdict(judge.ask([question], "judgements")[question])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Names of European rivers", {"names", "european", "rivers"}),
        ("references to the term RIVER, or to rivers", {"river", "rivers"}),
        ('active on "The" (60%), "(" (30%), "\\n" (10%)', {"the", "(", "\\n"}),
        ('active on """ (53%), "x"" (30%), ""," (17%)', {'"', 'x"', '",'}),
        ('"a" and "b" (20%)', {"a", "b"}),
        ('the word "the" before “a” noun', {"the", "before", "a", "noun"}),
        ("названия рек", {"названия", "рек"}),
        ("words that are used in the text", set()),
    ],
)
def test_common_words_do_not_count(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("first", "second", "label", "reason"),
    [
        ("red rivers", "the Red rivers", "SAME", "2 of 2 words shared: red, rivers"),
        ("river a b c d", "river e", "MAYBE", "1 of 5 words shared: river"),
        ("kinds of bread", "types of loaf", "DIFFERENT", "0 of 4 words shared: none"),
        ("red b1 b2 b3 b4 b5", "red c1 c2 c3 c4", "MAYBE", "1 of 10 words shared: red"),
        ("red b1 b2 b3 b4 b5", "red c1 c2 c3 c4 c5", "DIFFERENT", "1 of 11 words shared: red"),
        ("x y z b1 b2 b3", "x y z c1 c2 c3 c4", "SAME", "3 of 10 words shared: x, y, z"),
        ("x y b1 b2", "x y c1 c2 c3", "MAYBE", "2 of 7 words shared: x, y"),
        ("active on", "active on", "UNPARSED", "nothing to compare: a text has only common words"),
        ('active on "the" (100%)', 'active on "the" (70%), "The" (30%)', "SAME",
         "1 of 1 words shared: the"),
    ],
)  # fmt: skip
def test_overlap_by_hand(tmp_path, first, second, label, reason):
    """The thresholds themselves, 1 of 10 and 3 of 10, belong to the higher label."""
    assert judged(judge(tmp_path), first, second) == Verdict(label, reason)


def test_exchanging_the_texts_changes_nothing(tmp_path):
    texts = ["a river", "river bank", 'active on "river" (90%), "," (10%)', "the", "bank of bread"]
    of_default = judge(tmp_path)
    for first, second in product(texts, texts):
        assert judged(of_default, first, second) == judged(of_default, second, first)


def test_thresholds_are_settings_and_part_of_the_name(tmp_path):
    strict = judge(tmp_path, maybe=0.5, same=1.0)
    labels = [judged(strict, "x y", text).label for text in ("x y", "x", "x z")]
    assert labels == ["SAME", "MAYBE", "DIFFERENT"]
    assert strict.model != judge(tmp_path).model
    facts = strict.provenance()
    assert (facts["maybe"], facts["same"], facts["answers"]) == (0.5, 1.0, 3)
    assert not (tmp_path / "s").exists(), "nothing is kept"


@pytest.mark.parametrize("maybe, same", [(0.0, 0.3), (0.4, 0.3), (0.1, 1.1)])
def test_thresholds_that_cannot_be(maybe, same):
    with pytest.raises(ValueError, match=f"judge.maybe={maybe} and judge.same={same} are shares"):
        WordOverlap(maybe, same)


def loaded(tmp_path):
    return Results.load(tmp_path / "outputs/match/a/results.json")


def test_a_run_judged_twice_by_words_alone(cli, tmp_path):
    """Explanations of two layers share one of three words (equal kinds) or none."""
    path = tmp_path / "labels.jsonl"
    lines = [
        {"layer": layer, "feature": feature, "text": f"kind{feature % 5} of {layer}"}
        for layer in range(N_LAYERS)
        for feature in range(N_FEATURES)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    second = ["judge@second_judge=overlap", "second_judge.same=0.5"]
    message, output = cli(*RUN, *second, "explain=jsonl", f"explain.path={path}")
    assert message is None
    assert "the ceiling leaves out 40 of 40 features, which have one" in output.out + output.err
    results = loaded(tmp_path)
    assert results.status == "finished"
    rows = results.tables.rows("judgements")
    roles = {row["role"] for row in rows}
    assert roles == {"pair", "random", "identity", "swapped", "repeated", "second"}
    for row in rows:
        alike = row["source_feature"] % 5 == row["target_feature"] % 5
        label = "MAYBE" if row["role"] == "second" else "SAME"
        assert row["label"] == (label if alike else "DIFFERENT")
    again = {row["compared"]: row for row in results.tables.rows("judge_agreement")}
    for name in ("swapped", "repeated"):
        assert (again[name]["agreement"], again[name]["score_difference"]) == (1, 0)
    twice = [row for row in rows if row["role"] == "second"]
    unlike = sum(row["label"] == "DIFFERENT" for row in twice)
    assert again["second"]["agreement"] == pytest.approx(unlike / len(twice))
    assert all(row["judge_score"] == 3 for row in rows if row["role"] == "identity")
    names = [facts["model"] for facts in results.provenance["judges"]]
    assert names == ["overlap 0.1/0.3", "overlap 0.1/0.5"]
    for name in ("judge_contrasts", "judge_explainers", "mse_by_label"):
        assert results.tables.rows(name)
    assert "judge_score/folded" in results.metrics


def test_own_explanations_have_a_ceiling_from_other_texts(cli, tmp_path):
    assert cli(*RUN, "judging.ceiling=24")[0] is None
    rows = loaded(tmp_path).tables.rows("judgements")
    ceiling = [row for row in rows if row["role"] == "ceiling"]
    assert ceiling
    assert "paraphrase" not in {row["role"] for row in rows}
    for row in ceiling:
        source, target = (words(row[f"{end}_explanation"]) for end in ("source", "target"))
        share = len(source & target) / len(source | target)
        assert row["judge_score"] == 1 + (share >= 0.1) + (share >= 0.3)


def test_it_writes_no_explanations(cli):
    message, _ = cli(*RUN, "explain=own_llm")
    assert "judge=none and judge=overlap are not LLMs: set judge to an LLM" in message
