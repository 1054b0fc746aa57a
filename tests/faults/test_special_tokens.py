"""Special tokens count nowhere and keep their hidden states; plain hooks are the oracle."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from conftest import N_FEATURES, TEXTS, tiny_overrides
from evaluations import recorded, subject_of, tables_of
from matches import dense, partners
from saematch.core.pairs import Pair, SaeKey
from saematch.evaluate.co_activation import CoActivation
from saematch.evaluate.skipping import Skipping
from saematch.explain.contexts import ContextStore
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.matchers import Random
from saematch.matching.matches import match_pairs
from saematch.matching.objectives.parts import Parts
from saematch.matching.store import MatchStore
from saematch.sae.folding import fold
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models
from saematch.sae.sources.disk import SaeFolders
from saematch.sae.stand_in import ActivationQuantile, by_activation
from saematch.sae.suites import SaeShelf
from saematch.texts.readers import Reader
from saematch.texts.sources import LocalTexts, TextSet
from saematch.texts.token_cache import load_texts, resolve_texts
from saematch.texts.tokens import tokenise
from saematch.texts.trainer import TrainerSpec
from saematch.training.collect import Collection, collect

SPECIAL = ("<bos>", "<unk>", "<|endoftext|>", "<pad>", "<s>")
SPOILED = (
    "<bos>the quick brown fox jumps over the lazy dog",
    "features of a layer <|endoftext|> carry on into <s><s> the next layer",
    "<s> a short one here <pad><pad><pad>",
    "permutations pair the features <bos> of one layer with <tool> those",
    "every text begins <unk> with a special token<|endoftext|>",
)
"""``<tool>`` is an added token that is not special."""
CUT = 14
CPU = TrainerSpec(accelerator="cpu")
KEYS = tuple(SaeKey("default", layer) for layer in range(4))
PAIR = Pair.of_layers(1, 2)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """Return the tiny model with further tokens, some of them special."""
    from tokenizers import AddedToken
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path_factory.mktemp("special") / "lm"
    tokenizer = AutoTokenizer.from_pretrained(tiny / "lm")
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>", "pad_token": "<pad>"})
    tokenizer.add_tokens([AddedToken("<s>", special=True, normalized=False), AddedToken("<tool>")])
    tokenizer.save_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(tiny / "lm")
    torch.manual_seed(1)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return LmSource(str(folder), "tiny").load()


@pytest.fixture(scope="module")
def saes(tiny):
    source = SaeFolders(str(tiny / "saes/layer_{layer}"))
    return {key: source.load(key.layer) for key in KEYS}


@pytest.fixture(scope="module")
def batches(lm):
    return tokenise(TextSet("t", SPOILED), lm, CUT).batches(2)


def plain_ids(lm, text):
    """Return the ids of a text, and whether each of them counts, token by token."""
    ids = lm.tokenizer(text, add_special_tokens=False).input_ids
    ids = (ids if text.startswith("<bos>") else [0, *ids])[:CUT]
    special = {lm.tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    counts = [n > 0 and i not in special for n, i in enumerate(ids)]
    return torch.tensor([ids]), torch.tensor(counts)


def resid_post(lm, ids):
    """Return the outputs of all blocks, by hooks on the model itself."""
    seen = []
    hooks = [b.register_forward_hook(lambda m, i, o: seen.append(o)) for b in lm.blocks]
    lm.model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return [x[0] for x in seen]


def plain(lm, earlier, later, match, strategy):
    """Return x_hat, x and the losses where they count, text by text, and the original losses."""
    outcome = []
    for text in SPOILED:
        ids, counts = plain_ids(lm, text)
        x_t, x = (resid_post(lm, ids)[key.layer] for key in PAIR)
        if strategy == "permute":
            features = fold(earlier, "threshold").encode(x_t)
            x_hat = fold(later, "threshold").decode(features @ dense(match).float())
        else:
            x_hat = {"drop": x_t, "reconstruct_current": later.reconstruct(x)}[strategy]
        replaced = torch.where(counts[:, None], x_hat, x)[None]
        losses = []
        for out in (x[None], replaced):
            hook = lm.blocks[2].register_forward_hook(lambda m, i, o, out=out: out)
            logits = lm.model(input_ids=ids).logits[0]
            hook.remove()
            values = cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
            losses.append(values[counts[:-1] & counts[1:]])
        outcome.append((x_hat[counts], x[counts], *losses))
    return [torch.cat(part).double() for part in zip(*outcome, strict=True)]


def test_A2_what_the_tokenizer_marks_is_special_and_so_is_the_bos_that_is_named(folder, lm):
    ids = {name: lm.tokenizer.convert_tokens_to_ids(name) for name in (*SPECIAL, "<tool>", "the")}
    assert lm.special_ids == {ids[name] for name in SPECIAL}
    other = LmSource(str(folder), "tiny", bos="the").load()
    assert other.special_ids == lm.special_ids | {ids["the"]}
    none = LmSource(str(folder), "tiny", bos="none").load()
    assert (none.bos_id, none.special_ids) == (None, lm.special_ids)


def test_A2_skipped_layers_equal_plain_hooks(lm, saes, batches, tmp_path):
    arms = {"a": Arm("threshold", Parts(), Random(1), ("permute",))}
    matches = match_pairs(saes, (PAIR,), arms, MatchStore(tmp_path / "m"), tmp_path)
    counting, skipping = CoActivation(), Skipping(("drop", "reconstruct_current"))
    subject = subject_of(saes, matches, arms, tmp_path / "sums")
    subject = recorded(subject, [counting, skipping], lm, {"t": batches})
    match = matches.by_arm["a"][PAIR]
    earlier, later = saes[PAIR.source], saes[PAIR.target]
    masks = [plain_ids(lm, text)[1] for text in SPOILED]
    n_special = sum(len(counts) - 1 - int(counts.sum()) for counts in masks)
    rows = tables_of(subject, skipping).rows("strategies")
    for row in rows:
        x_hat, x, before, after = plain(lm, earlier, later, match, row["strategy"])
        wrong = (x_hat - x).var(dim=0, correction=0).sum()
        explained = 1 - wrong / x.var(dim=0, correction=0).sum()
        assert row["explained_variance"] == pytest.approx(explained.item(), rel=1e-4, abs=1e-6)
        assert row["loss_original"] == pytest.approx(before.mean().item(), rel=1e-5)
        assert row["delta_loss"] == pytest.approx((after - before).mean().item(), abs=1e-5)
        assert (row["n_tokens"], row["n_targets"]) == (len(x), len(after))
        assert row["n_special"] == n_special
    assert [row["strategy"] for row in rows] == ["permute", "drop", "reconstruct_current"]

    tables = tables_of(subject, counting)
    (scored, _) = tables.rows("activations")
    active = []
    for text in SPOILED:
        ids, counts = plain_ids(lm, text)
        x = resid_post(lm, ids)
        active.append([(saes[key].encode(x[key.layer]) > 0)[counts] for key in KEYS[1:3]])
    own, partner = (torch.cat(part) for part in zip(*active, strict=True))
    both = own & partner[:, partners(match)]
    assert scored["matching_score"] == pytest.approx(both.sum().item() / own.sum().item())
    layers = tables.rows("layers")
    assert [(row["suite"], row["layer"]) for row in layers] == list(KEYS)
    assert layers[1]["mean_l0"] == pytest.approx(own.sum().item() / len(own))
    assert {row["n_special"] for row in layers} == {n_special}


def test_A2_a_bos_in_front_of_every_text_changes_nothing(cli, tiny, tmp_path):
    numbers = {}
    for name, first in (("without", ""), ("with", "<bos>")):
        lines = [json.dumps({"text": first + text}) for text in TEXTS]
        (tmp_path / "t.jsonl").write_text("\n".join(lines))
        base = [s for s in tiny_overrides(tiny) if not s.startswith("dataset.paths")]
        base += [
            "figures=[]",
            "logger=none",
            "evaluations=[co_activation,skipping]",
            "dataset.paths=[t.jsonl]",
        ]
        base += ["layers=[1,2]"]
        assert cli(f"run_id={name}", base=base)[0] is None
        outcome = json.loads((tmp_path / f"outputs/match/{name}/results.json").read_text())
        numbers[name] = [outcome["tables"], outcome["metrics"]]
        assert outcome["provenance"]["texts"]["t"]["n_special"] == 0
        assert outcome["tables"]["strategies"][0]["n_special"] == 0
    assert numbers["with"] == numbers["without"]


def test_A2_without_bos_the_first_token_and_special_ones_are_left_out(folder):
    lm = LmSource(str(folder), "tiny", bos="none").load()
    texts = TextSet("t", ("<s> the layer of <pad> one", "the layer of one", "<bos>the layer of"))
    (batch,) = tokenise(texts, lm, CUT).batches(3)
    by_text = dict(zip(batch.lengths.tolist(), batch.counts.int().tolist(), strict=True))
    names = [lm.tokenizer.convert_ids_to_tokens(ids) for ids in batch.ids.tolist()]
    assert names[0] == ["<s>", "the", "layer", "of", "<pad>", "one"]
    assert by_text[6] == [0, 1, 1, 1, 0, 1]
    assert batch.counts.int().tolist()[1:] == [[0, 1, 1, 1, 0, 0]] * 2
    assert batch.n_special.tolist() == [1, 0, 0]
    assert batch.predicts.int().tolist()[0] == [0, 1, 1, 0, 0, 0]


def test_A2_a_text_with_no_two_tokens_side_by_side_is_refused_with_its_line(lm, tmp_path):
    path = tmp_path / "t.jsonl"
    texts = ("the layer", "the<s>layer<s>of", "one of the")
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    spec = LocalTexts([str(path)], 3, CUT, seed=2)
    with pytest.raises(ValueError, match=r"t\.jsonl, line 2: .*has 6 tokens, of which 3 count"):
        load_texts(resolve_texts(spec, tmp_path), lm)


def test_A2_contexts_equal_plain_hooks(lm, saes, batches, tmp_path):
    texts = TextPass({"": Reader(lm, {"t": batches})}, Models(), CPU)
    store = ContextStore(SaeShelf.of(saes), texts, tmp_path / "kept", 99, 1)
    recorder = store.recorder(tmp_path / "left")
    kept = store.contexts(texts.record(store.saes, {"r": recorder}, "contexts")["r"])
    plain = [plain_ids(lm, text) for text in SPOILED]
    order = sorted(range(len(plain)), key=lambda n: -plain[n][0].shape[1])
    for ids, n in zip(texts.readers[""].texts, order, strict=True):
        assert ids.tolist() == plain[n][0][0].tolist(), "special tokens included"
    for key in KEYS[1:3]:
        expected = {}
        for number, n in enumerate(order):
            ids, counts = plain[n]
            active = saes[key].encode(resid_post(lm, ids)[key.layer]) * counts[:, None]
            values, positions = active.max(dim=0)
            for feature in torch.nonzero(values).flatten().tolist():
                expected[feature, number] = int(positions[feature]), float(values[feature])
        top = kept[key].top
        rows = zip(*(c.tolist() for c in (top.feature, top.text)), strict=True)
        outcome = dict(
            zip(rows, zip(top.position.tolist(), top.value.tolist(), strict=True), strict=True)
        )
        assert outcome.keys() == expected.keys()
        for at, (position, value) in expected.items():
            assert outcome[at] == (position, pytest.approx(value, rel=1e-4))


def test_A2_folding_by_activations_leaves_special_tokens_out(lm, saes, batches, tmp_path):
    relu = {
        key: replace(saes[key], threshold=None, activation="relu", origin=saes[key].origin)
        for key in KEYS[1:2]
    }
    spec = ActivationQuantile(quantile=1.0, n_tokens=10_000)
    texts = TextPass({"": Reader(lm, {"t": batches})}, Models(), CPU)
    shelf = by_activation(spec, SaeShelf.of(relu), texts, tmp_path)
    highest = torch.zeros(N_FEATURES)
    for text in SPOILED:
        ids, counts = plain_ids(lm, text)
        active = relu[KEYS[1]].encode(resid_post(lm, ids)[1])[counts]
        highest = torch.maximum(highest, active.max(dim=0).values)
    scale = shelf[KEYS[1]].stand_in
    torch.testing.assert_close(scale[highest > 0], highest[highest > 0], rtol=1e-4, atol=1e-5)


def test_A2_training_leaves_special_tokens_out_and_doubles_no_bos(lm, tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in SPOILED))
    spec = Collection(40, 10, "float32", str(tmp_path / "states"))
    texts = LocalTexts([str(path)], None, CUT)
    store = collect(lm, texts, (1, 3), spec, CPU, tmp_path)
    windows = load_file(next(tmp_path.glob("states/*/windows.safetensors")))["ids"].long()
    special = {lm.tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    rows, n_special = {1: [], 3: []}, 0
    for window in windows:
        counts = torch.tensor([n > 0 and int(i) not in special for n, i in enumerate(window)])
        n_special += len(window) - 1 - int(counts.sum())
        x = resid_post(lm, window[None])
        for layer in rows:
            rows[layer].append(x[layer][counts])
    for layer, expected in rows.items():
        expected = torch.cat(expected)
        outcome = store.layer(layer)
        assert len(outcome) == len(expected) == store.facts["tokens"]
        torch.testing.assert_close(
            outcome.rows(torch.arange(len(expected))), expected, rtol=1e-4, atol=1e-4
        )
    assert store.facts["texts"]["t"]["n_special"] == n_special > 4
    assert not ((windows[:, 1:] == 0) & (windows[:, :-1] == 0)).any()
    with monkeypatch.context() as changed:
        changed.setattr(lm, "special_ids", frozenset({0}))
        other = collect(lm, texts, (1, 3), spec, CPU, tmp_path)
    assert other.folder != store.folder
    assert other.facts["tokens"] > store.facts["tokens"]


def test_A2_windows_are_the_same_with_the_separator_in_the_texts(lm):
    from saematch.texts.windows import windows

    plain_texts = TextSet("t", tuple(TEXTS))
    for bos, eos in (("<bos>", ""), ("", "<bos>"), ("<bos>", "<bos>")):
        spoiled = TextSet("t", tuple(f"{bos}{text}{eos}" for text in TEXTS))
        assert torch.equal(
            *(windows([text_set], lm, 8, 40, 0) for text_set in (plain_texts, spoiled))
        )
    none = SimpleNamespace(tokenizer=lm.tokenizer, bos_id=None, special_ids=lm.special_ids)
    spoiled = TextSet("t", tuple(f"{text}<|endoftext|>" for text in TEXTS))
    assert torch.equal(
        *(windows([text_set], none, 8, 40, 0) for text_set in (plain_texts, spoiled))
    )
