"""Own explanations: from the tokens on which a feature is active, or by an LLM that sees them."""

from dataclasses import replace

import pytest
import torch

from chat.judge_server import JudgeServer
from conftest import TEXTS
from saematch.chat.model import ChatModel
from saematch.core.pairs import SaeKey
from saematch.explain.contexts import Contexts, KeptContexts
from saematch.explain.explanations import ExplanationSource, FeatureKey, Inputs
from saematch.explain.own import OwnExplanations, OwnTexts
from saematch.judge.connect import connect
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models
from saematch.sae.sources.disk import SaeFolders
from saematch.sae.suites import SaeShelf
from saematch.texts.readers import Reader
from saematch.texts.sources import TextSet
from saematch.texts.tokens import TokenBatch, tokenise
from saematch.texts.trainer import TrainerSpec

SAE = SaeKey("default", 3)
WORDS = ["<bos>", "the", "red", "river", "ran", "past", "a", "blue", "lake", "at", "dawn"]


class Tokenizer:
    def decode(self, ids):
        return "".join(f" {WORDS[int(i)]}" for i in ids)


class Wordy(LanguageModel):
    """A model of which only the tokenizer is used."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.tokenizer = Tokenizer()


def text_pass():
    """Twenty texts of ten words each, in the order of WORDS."""
    ids = torch.arange(11).repeat(20, 1)
    batch = TokenBatch(ids, ids > 0, torch.full((20,), 11))
    trainer = TrainerSpec(accelerator="cpu")
    return TextPass({"": Reader(Wordy(), {"t": (batch,)})}, Models(), trainer)


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
    own = OwnTexts(OwnExplanations("tokens"), kept, text_pass(), None)
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
    own = OwnTexts(OwnExplanations("llm", window=2), kept, text_pass(), chat)
    explained = own.of([FeatureKey(SAE, 5)], others=True)[FeatureKey(SAE, 5)]
    server.close()
    assert [(e.text, e.explainer) for e in explained] == [
        ("lake  river", "judge-1"),
        ("river", "judge-1"),
    ]
    contents = sorted(body["messages"][-1]["content"] for body in server.bodies)
    assert contents == [
        '<excerpts>"10: the red⟦ river⟧ ran | 3: a blue⟦ lake⟧ at"</excerpts>',
        '<excerpts>"10: the red⟦ river⟧ ran"</excerpts>',
    ]


def test_quantiles_of_the_sample_follow_the_top(tmp_path):
    top = contexts((5, 0, 3, 100.0))
    rows = [(5, 2 * n, n, float(n)) for n in range(1, 10)]
    server = JudgeServer()
    for number, sample in enumerate((rows, rows[::-1])):
        kept = {SAE: KeptContexts(top, contexts(*sample))}
        chat = connect(ChatModel("judge-1", server.url), tmp_path / str(number))
        OwnTexts(OwnExplanations("llm"), kept, text_pass(), chat).of([FeatureKey(SAE, 5)])
    server.close()
    first, again = (body["messages"][-1]["content"] for body in server.bodies)
    assert again == first, "the order of the sample does not matter"
    excerpts = first.removeprefix('<excerpts>"').split(" | ")
    strengths, words = zip(*(excerpt.split(": ", 1) for excerpt in excerpts), strict=True)
    assert strengths == ("10", "1", "1", "1", "1", "1")
    marked = [text.partition("⟦ ")[2].partition("⟧")[0] for text in words[1:]]
    assert marked == [WORDS[n] for n in (9, 7, 5, 3, 1)], "from most to least active"


def test_an_explanation_that_cannot_be_read_is_absent_and_counted(kept, tmp_path, caplog):
    server = JudgeServer(faults={"refusal": 1.0})
    chat = connect(ChatModel("judge-1", server.url), tmp_path / "s")
    own = OwnTexts(OwnExplanations("llm"), kept, text_pass(), chat)
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


@pytest.fixture
def run(tiny, tmp_path):
    """SAEs and inputs of a run on the tiny language model."""
    lm = LmSource(str(tiny / "lm"), "tiny").load()
    batches = tokenise(TextSet("t", tuple(TEXTS)), lm, 10).batches(2)
    source = SaeFolders(str(tiny / "saes/layer_{layer}"))
    saes = SaeShelf.of({SaeKey("default", layer): source.load(layer) for layer in (1, 2)})
    texts = TextPass({"": Reader(lm, {"t": batches})}, Models(), TrainerSpec(accelerator="cpu"))
    return saes, Inputs(tmp_path / "cache", texts, tmp_path / "run")


def record(saes, inputs, recorder):
    recordings = inputs.texts.record(saes, {"contexts": recorder}, "contexts")
    return replace(inputs, recording=recordings["contexts"])


def test_a_run_records_contexts_once_and_a_second_run_none(run):
    saes, inputs = run
    spec = OwnExplanations("tokens", n_top=2)
    recorder = spec.recorder(saes, inputs)
    opened = spec.open(saes, record(saes, inputs, recorder))
    assert not inputs.recorder_folder.exists(), "the files of batches are deleted"
    assert spec.recorder(saes, inputs) is None
    again = spec.open(saes, inputs)
    for key in saes:
        features = [FeatureKey(key, feature) for feature in opened.features(key)]
        explanations = opened.of(features, others=True)
        assert list(explanations) == features
        assert again.of(features, others=True) == explanations


def test_an_sae_without_active_features_has_no_explanations(run):
    saes, inputs = run
    dead = {
        key: replace(saes[key], threshold=torch.full_like(saes[key].threshold, 1e9)) for key in saes
    }
    spec = OwnExplanations("tokens")
    recorder = spec.recorder(dead, inputs)
    opened = spec.open(dead, record(SaeShelf.of(dead), inputs, recorder))
    assert [opened.features(key) for key in dead] == [[], []]
    assert opened.of([FeatureKey(key, 0) for key in dead], others=True) == {}
