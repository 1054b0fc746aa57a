"""Own explanations: from the tokens on which a feature is active, or by an LLM that sees them."""

from types import SimpleNamespace

import pytest
import torch

from chat.judge_server import JudgeServer
from saematch.chat.model import ChatModel
from saematch.core.pairs import SaeKey
from saematch.explain.contexts import Contexts, KeptContexts, TextPass
from saematch.explain.explanations import ExplanationSource, FeatureKey
from saematch.explain.own import OwnExplanations, OwnTexts
from saematch.judge.connect import connect

SAE = SaeKey("default", 3)
WORDS = ["<bos>", "the", "red", "river", "ran", "past", "a", "blue", "lake", "at", "dawn"]


class Tokenizer:
    def decode(self, ids):
        return "".join(f" {WORDS[i]}" for i in ids.tolist())


class Texts(TextPass):
    """Texts of ten words each, in the order of WORDS."""

    texts = (torch.arange(11),) * 20
    lm = SimpleNamespace(tokenizer=Tokenizer())

    def of(self, _):
        return self

    def __init__(self):
        pass


def contexts(*rows):
    columns = [torch.tensor(column) for column in zip(*rows, strict=True)]
    return Contexts(*columns[:3], columns[3].float())


@pytest.fixture
def kept():
    """Feature 5 on rivers and lakes, in both halves; feature 7 in the second half alone."""
    top = contexts((5, 0, 3, 3.0), (5, 2, 8, 1.0), (5, 1, 3, 2.0), (7, 3, 2, 1.0))
    sample = contexts((5, 2, 8, 1.0), (5, 1, 3, 2.0), (7, 3, 2, 1.0))
    return {SAE: KeptContexts(top, sample)}


def test_tokens_are_named_by_their_share_of_the_activation(kept):
    own = OwnTexts(OwnExplanations("tokens"), kept, Texts(), None)
    assert own.features(SAE) == [5, 7]
    both = [FeatureKey(SAE, 5), FeatureKey(SAE, 7), FeatureKey(SAE, 6)]
    first = own.of(both)
    assert set(first) == set(both[:2])
    assert [e.text for e in first[both[0]]] == ['active on "river" (75%), "lake" (25%)']
    assert [e.text for e in first[both[1]]] == ['active on "red" (100%)']
    twice = own.of(both, others=True)
    assert [e.text for e in twice[both[0]]] == [
        'active on "river" (75%), "lake" (25%)',
        'active on "river" (100%)',
    ]
    assert len(twice[both[1]]) == 1
    assert {(e.explainer, e.method) for e in twice[both[0]]} == {("tokens", "tokens")}


def test_an_llm_sees_marked_tokens_with_how_active_they_are(kept, tmp_path):
    server = JudgeServer()
    chat = connect(ChatModel("judge-1", server.url), tmp_path / "s")
    own = OwnTexts(OwnExplanations("llm", window=2), kept, Texts(), chat)
    explained = own.of([FeatureKey(SAE, 5)], others=True)[FeatureKey(SAE, 5)]
    server.close()
    assert [(e.text, e.explainer) for e in explained] == [
        ("lake  river", "judge-1"),
        ("river", "judge-1"),
    ]
    said = sorted(body["messages"][-1]["content"] for body in server.bodies)
    assert said == [
        '<excerpts>"10: the red⟦ river⟧ ran | 3: a blue⟦ lake⟧ at"</excerpts>',
        '<excerpts>"10: the red⟦ river⟧ ran"</excerpts>',
    ]


def test_quantiles_of_the_sample_follow_the_top(tmp_path):
    top = contexts((5, 0, 3, 10.0))
    rows = [(5, 2 * n, 1, float(n)) for n in range(1, 10)]
    server = JudgeServer()
    for order in (rows, rows[::-1]):
        kept = {SAE: KeptContexts(top, contexts(*order))}
        chat = connect(ChatModel("judge-1", server.url), tmp_path / f"{order[0][3]}")
        OwnTexts(OwnExplanations("llm"), kept, Texts(), chat).of([FeatureKey(SAE, 5)])
    server.close()
    first, second = (body["messages"][-1]["content"] for body in server.bodies)
    assert first == second, "whatever the order of the sample"
    excerpts = first.split('"')[1].split(" | ")
    assert [int(excerpt.split(":")[0]) for excerpt in excerpts] == [10, 9, 7, 5, 3, 1]


def test_an_explanation_that_cannot_be_read_is_absent_and_counted(kept, tmp_path, caplog):
    server = JudgeServer(faults={"refusal": 1.0})
    chat = connect(ChatModel("judge-1", server.url), tmp_path / "s")
    own = OwnTexts(OwnExplanations("llm"), kept, Texts(), chat)
    assert own.of([FeatureKey(SAE, 5)], others=True) == {}
    server.close()
    assert "2 of 2 explanations could not be read or were refused" in caplog.text


def test_bad_settings():
    assert isinstance(OwnExplanations("tokens"), ExplanationSource)
    with pytest.raises(ValueError, match="neither tokens nor llm"):
        OwnExplanations("words")
    with pytest.raises(ValueError, match="n_top=0"):
        OwnExplanations("tokens", n_top=0)
    assert (OwnExplanations("llm").asks_llm, OwnExplanations("tokens").asks_llm) == (True, False)
