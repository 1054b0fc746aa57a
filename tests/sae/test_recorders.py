"""Many recorders share one pass over the texts, and each has files of its own."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from conftest import TEXTS
from saematch.core.errors import InputError
from saematch.core.pairs import SaeKey
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.sae import recorders as module
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models, Recorder, tensor_name
from saematch.sae.sources.disk import SaeFolders
from saematch.sae.suites import SaeShelf
from saematch.texts import lightning_runner
from saematch.texts.readers import Reader
from saematch.texts.sources import TextSet
from saematch.texts.tokens import tokenise
from saematch.texts.trainer import TrainerSpec

CPU = TrainerSpec(accelerator="cpu")
KEYS = tuple(SaeKey("default", layer) for layer in range(3))
OTHER = tuple(SaeKey("other", layer) for layer in (1, 2))
"""SAEs of a second language model."""


@pytest.fixture(scope="module")
def lm(tiny):
    return LmSource(str(tiny / "lm"), "tiny").load()


@pytest.fixture(scope="module")
def other_lm(tiny):
    """A model that reads the same tokens and has other hidden states."""
    lm = LmSource(str(tiny / "lm"), "other").load()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(1.5)
    return lm


@pytest.fixture(scope="module")
def source(tiny):
    return SaeFolders(str(tiny / "saes/layer_{layer}"))


@pytest.fixture(scope="module")
def saes(source):
    return SaeShelf.load(KEYS, {"default": source}, 1.0)


def reader(lm, batch_size=2):
    sets = {"a": TEXTS, "b": TEXTS[:3]}
    return Reader(
        lm,
        {
            name: tokenise(TextSet(name, tuple(texts)), lm, 10).batches(batch_size)
            for name, texts in sets.items()
        },
    )


def text_pass(lm, batch_size=2):
    return TextPass({"": reader(lm, batch_size)}, Models(), CPU)


@dataclass(frozen=True)
class Totals:
    """Records the sum of activations of each text, for items of one or more SAEs."""

    folder: Path
    items: tuple[tuple[SaeKey, ...], ...]
    runs_model: bool = False
    fits: int = 99
    """Number of texts above which memory is too small."""
    seen: list = field(default_factory=list)
    """Batches that were recorded: size, items, label of the model, whether it was run to the end;
    shared with the recorders of some items."""

    def needs(self):
        return {item: frozenset(item) for item in self.items}

    def only(self, items):
        return replace(self, items=tuple(items))

    def facts(self):
        return [[list(map(list, item)) for item in self.items]]

    def record(self, forward):
        n_texts = len(forward.batch.ids)
        self.seen.append((n_texts, self.items, forward.model, forward.final is not None))
        if n_texts > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        kept = {}
        for item in self.items:
            total = torch.zeros(n_texts)
            for key in item:
                active = forward.active(key)
                total.index_add_(0, forward.text[active.tokens()], active.values)
            kept["+".join(tensor_name(key, "total") for key in item)] = total
        return kept

    def join(self, first, second, n_texts):
        assert all(len(total) == n_texts for total in first.values())
        return {name: torch.cat([total, second[name]]) for name, total in first.items()}


@dataclass(frozen=True)
class Products(Totals):
    """Records products of hidden states, and whole numbers."""

    def record(self, forward):
        n_texts = len(forward.batch.ids)
        x = forward.x(self.items[0][0])
        negative = torch.arange(n_texts)[:, None] - 40_000
        return {"product": x @ x[:2].T, "negative": negative, "none": negative[:, :0],
                "small": negative + 40_000}  # fmt: skip


def singles(keys=KEYS):
    return tuple((key,) for key in keys)


def plain(reader, sae, layer):
    """The sum of an SAE's activations of each text, by running one text at a time."""
    totals = []
    for batches in reader.tokens.values():
        for batch in batches:
            for ids, counts, n in zip(batch.ids, batch.counts, batch.lengths, strict=True):
                hidden, _ = reader.lm.capture(ids[None, :n], (layer,))
                totals.append(float(sae.encode(hidden[layer][0, counts[:n]]).sum()))
    return totals


def recorded(recording, *item):
    """The recorded sums of an item, of all texts."""
    name = "+".join(tensor_name(key, "total") for key in item)
    return [value for (total,) in recording.batches([name]) for value in total.tolist()]


@pytest.fixture
def calls(monkeypatch):
    """Number of forwards of batches and of encoded batches of SAEs, while a test runs."""
    counter = Counter()
    capture, encode = LanguageModel.capture, module.encode

    def counted_capture(self, ids, layers):
        counter["forward"] += 1
        return capture(self, ids, layers)

    def counted_encode(sae, x):
        counter["encode"] += 1
        return encode(sae, x)

    monkeypatch.setattr(LanguageModel, "capture", counted_capture)
    monkeypatch.setattr(module, "encode", counted_encode)
    return counter


def distinct(texts):
    """Number of different batches: text sets may share batches."""
    batches = [batch for of_set in texts.readers[""].tokens.values() for batch in of_set]
    return len({batch.identity for batch in batches})


def test_recorders_share_one_forward_and_the_active_features(lm, saes, tmp_path, calls):
    first = Totals(tmp_path / "first", singles())
    second = Totals(tmp_path / "second", (KEYS[:2], KEYS[1:]))
    assert isinstance(first, Recorder)
    texts = text_pass(lm)
    recordings = texts.record(saes, {"first": first, "second": second}, "record")
    assert calls == {"forward": distinct(texts), "encode": distinct(texts) * len(KEYS)}
    for name in ("first", "second"):
        files = {path for parts in recordings[name].files.values() for of in parts for path in of}
        assert files == set((tmp_path / name).iterdir())
        assert len(files) == distinct(texts)
    by_sae = {key: plain(texts.readers[""], saes[key], key.layer) for key in KEYS}
    for key, expected in by_sae.items():
        assert recorded(recordings["first"], key) == pytest.approx(expected, rel=1e-4)
        assert any(expected)
    for item in second.items:
        expected = [sum(of_text) for of_text in zip(*(by_sae[key] for key in item), strict=True)]
        assert recorded(recordings["second"], *item) == pytest.approx(expected, rel=1e-4)


def test_sums_by_text_are_read_from_a_recording(lm, saes, tmp_path):
    recorder = Totals(tmp_path, singles(KEYS[:1]))
    recording = text_pass(lm).record(saes, {"r": recorder}, "record")["r"]
    sums = recording.sums()
    assert list(sums) == ["a", "b"]
    totals = [sums[name][tensor_name(KEYS[0], "total")].tolist() for name in sums]
    assert [*totals[0], *totals[1]] == recorded(recording, KEYS[0])
    with pytest.raises(KeyError, match="unknown"):
        list(recording.batches(["unknown"]))


def test_files_that_are_there_are_not_recorded_again(lm, saes, tmp_path, calls):
    texts = text_pass(lm)
    first = Totals(tmp_path / "first", singles())
    alone = texts.record(saes, {"first": first}, "record")["first"]
    n = len(first.seen)
    assert calls["forward"] == n == distinct(texts)
    second = Totals(tmp_path / "second", (KEYS[:2],))
    both = texts.record(saes, {"second": second, "any name": first}, "another name")
    assert both["any name"] == alone, "files do not depend on the other recorders"
    assert calls["forward"] == 2 * n
    assert (len(first.seen), len(second.seen)) == (n, n)
    again = texts.record(saes, {"first": first, "second": second}, "record")
    assert again == {"first": alone, "second": both["second"]}
    assert calls["forward"] == 2 * n, "without a missing file, no model is run"


def test_a_pass_that_was_killed_continues_with_the_missing_file(lm, saes, tmp_path, monkeypatch):
    recorders = {name: Totals(tmp_path / name, singles()) for name in ("first", "second")}
    texts = text_pass(lm)
    write, written = lightning_runner.write_sums, []

    def breaking(path, sums):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write(path, sums)

    with monkeypatch.context() as patched:
        patched.setattr(lightning_runner, "write_sums", breaking)
        with pytest.raises(KeyboardInterrupt):
            texts.record(saes, recorders, "record")
    kept = {name: len(list((tmp_path / name).iterdir())) for name in recorders}
    assert kept == {"first": 2, "second": 1}, "killed between the two files of the second batch"
    for recorder in recorders.values():
        recorder.seen.clear()
    resumed = texts.record(saes, recorders, "record")
    n_recorded = {name: len(recorder.seen) for name, recorder in recorders.items()}
    assert n_recorded == {name: distinct(texts) - n for name, n in kept.items()}
    fresh = {name: replace(r, folder=tmp_path / "new" / name) for name, r in recorders.items()}
    for name, recording in texts.record(saes, fresh, "record").items():
        for key in KEYS:
            assert recorded(resumed[name], key) == recorded(recording, key)


@pytest.mark.parametrize("change", ["items", "precision", "texts", "model", "SAE"])
def test_the_name_of_a_file_follows_what_determines_its_content(
    lm, other_lm, saes, source, tmp_path, change
):
    texts, keys = text_pass(lm), singles(KEYS[1:])
    before = texts.record(saes, {"r": Totals(tmp_path, keys)}, "record")["r"]
    if change == "items":
        keys = keys[::-1]
    elif change == "precision":
        texts = replace(texts, trainer=replace(CPU, precision="bf16-mixed"))
    elif change == "texts":
        texts = text_pass(lm, batch_size=3)
    elif change == "model":
        texts = text_pass(other_lm)
    else:
        saes = SaeShelf.of({key: source.load(3 - key.layer) for key in KEYS})
    after = texts.record(saes, {"r": Totals(tmp_path, keys)}, "record")["r"]
    names = [{path for parts in r.files.values() for of in parts for path in of}
             for r in (before, after)]  # fmt: skip
    assert not names[0] & names[1]


def test_recorders_of_two_classes_have_files_of_their_own_in_one_folder(lm, saes, tmp_path):
    recorders = {"a": Totals(tmp_path, singles()), "b": Products(tmp_path, singles())}
    recordings = text_pass(lm).record(saes, recorders, "record")
    assert recorded(recordings["a"], KEYS[0])
    assert list(recordings["b"].batches(["product"]))


def test_a_recorder_that_runs_no_model_computes_in_full_precision(lm, saes, tmp_path):
    texts = replace(text_pass(lm), trainer=replace(CPU, precision="bf16-mixed"))
    recording = texts.record(saes, {"r": Products(tmp_path, singles())}, "record")["r"]
    assert {product.dtype for (product,) in recording.batches(["product"])} == {torch.float32}


def test_whole_numbers_are_read_as_they_were_recorded(lm, saes, tmp_path):
    recording = text_pass(lm).record(saes, {"r": Products(tmp_path, singles())}, "record")["r"]
    negative, none, small = next(recording.batches(["negative", "none", "small"]))
    assert negative.tolist() == [[-40_000], [-39_999]]
    assert none.shape == (2, 0)
    assert small.tolist() == [[0], [1]]
    assert (small + 40_000).tolist() == [[40_000], [40_001]], "in 64 bits"


def test_items_that_no_part_of_a_pass_can_record_are_refused(two_models, tmp_path):
    texts, saes = two_models
    with pytest.raises(InputError, match=r"of r: .* 0 language models; it must be at least one"):
        texts.record(saes, {"r": Totals(tmp_path, ((),))}, "record")
    runs = Totals(tmp_path, ((KEYS[1], OTHER[1]),), runs_model=True)
    with pytest.raises(InputError, match="2 language models; it must be one"):
        texts.record(saes, {"r": runs}, "record")


def test_saes_that_do_not_fit_make_parts_with_every_item_once(lm, source, tmp_path, calls):
    size = SaeShelf.load(KEYS, {"default": source}, 1.0).facts[KEYS[0]].n_bytes
    small = SaeShelf.load(KEYS, {"default": source}, 2.1 * size / 2**30)
    alone = Totals(tmp_path / "alone", singles())
    pairs = Totals(tmp_path / "pairs", (KEYS[:2], KEYS[1:]))
    texts = text_pass(lm)
    recordings = texts.record(small, {"alone": alone, "pairs": pairs}, "record")
    n = distinct(texts)
    assert calls == {"forward": 2 * n, "encode": 4 * n}
    for recorder in (alone, pairs):
        parts = dict.fromkeys(items for _, items, _, _ in recorder.seen)
        assert [item for items in parts for item in items] == list(recorder.items)
    assert [len(parts) for parts in recordings["alone"].files.values()] == [2, 2]
    for key in KEYS:
        expected = plain(texts.readers[""], small[key], key.layer)
        assert recorded(recordings["alone"], key) == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def two_models(lm, other_lm, source):
    """A pass of two models that read the same tokens, and the SAEs of both."""
    readers = {"": reader(lm), "b": reader(other_lm)}
    saes = SaeShelf.load(KEYS + OTHER, {"default": source, "other": source}, 1.0)
    return TextPass(readers, Models({"other": "b"}), CPU), saes


def test_an_item_of_two_models_reads_the_hidden_states_of_both(two_models, tmp_path):
    texts, saes = two_models
    pair = (KEYS[1], OTHER[1])
    recorder = Totals(tmp_path / "all", (pair, *singles(KEYS + OTHER)))
    recording = texts.record(saes, {"all": recorder}, "record")["all"]
    values = {}
    for key in KEYS + OTHER:
        of_model = texts.readers[texts.models.of(key)]
        values[key] = plain(of_model, saes[key], key.layer)
        assert recorded(recording, key) == pytest.approx(values[key], rel=1e-4)
    assert values[KEYS[1]] != pytest.approx(values[OTHER[0]], rel=1e-2)
    both = [sum(of_text) for of_text in zip(*(values[key] for key in pair), strict=True)]
    assert recorded(recording, *pair) == pytest.approx(both, rel=1e-4)
    where = {item: model for _, items, model, _ in recorder.seen for item in items}
    assert where == {
        pair: "",
        (KEYS[1],): "",  # the pair's SAEs
        (OTHER[1],): "",
        (KEYS[0],): "",
        (KEYS[2],): "",
        (OTHER[0],): "b",
    }


def test_items_that_run_the_model_are_recorded_on_their_own_model(two_models, tmp_path):
    texts, saes = two_models
    plain_items = Totals(tmp_path / "plain", ((KEYS[1], OTHER[1]), (OTHER[1],)))
    runs = Totals(tmp_path / "runs", (KEYS[:2], OTHER, (OTHER[1],)), runs_model=True)
    texts.record(saes, {"plain": plain_items, "runs": runs}, "record")
    where = {item: (model, final) for _, items, model, final in runs.seen for item in items}
    assert where == {KEYS[:2]: ("", True), OTHER: ("b", True), (OTHER[1],): ("b", True)}
    models = {model for _, _, model, _ in plain_items.seen}
    assert models == {""}, "the pair and its SAEs share the pass of the first model"


def test_the_name_of_a_file_does_not_depend_on_the_part_of_the_pass(two_models, tmp_path):
    """An SAE of the second model is recorded in the pass of its model, or with a pair of both."""
    texts, saes = two_models
    recorder = Totals(tmp_path / "single", (OTHER[1:],))
    alone = texts.record(saes, {"single": recorder}, "record")["single"]
    pair = Totals(tmp_path / "pair", ((KEYS[1], OTHER[1]),))
    n = len(recorder.seen)
    both = texts.record(saes, {"single": recorder, "pair": pair}, "record")
    assert both["single"] == alone
    assert len(recorder.seen) == n


def test_models_share_an_sae_that_is_recorded_once_for_each(two_models):
    texts, saes = two_models
    more = SaeShelf.of({**saes, SaeKey("default", 9): saes[KEYS[0]]})
    assert texts.models.twins(more) == {
        **{key: key for key in KEYS + OTHER},
        SaeKey("default", 9): KEYS[0],
    }


def test_out_of_memory_halves_the_batch_for_all_recorders(lm, saes, tmp_path, caplog):
    texts = text_pass(lm, batch_size=5)
    whole = Totals(tmp_path / "whole", singles())
    expected = texts.record(saes, {"r": whole}, "record")["r"]
    greedy = Totals(tmp_path / "greedy", singles(), fits=2)
    modest = Totals(tmp_path / "modest", (KEYS[:2],))
    halved = texts.record(saes, {"modest": modest, "greedy": greedy}, "record")
    assert [n for n, *_ in greedy.seen] == [5, 3, 2, 1, 2, 3, 2, 1], (
        "each text set determines the size that fits"
    )
    for key in KEYS:
        totals = recorded(expected, key)
        assert recorded(halved["greedy"], key) == pytest.approx(totals, rel=1e-5)
    sums = [recorded(expected, key) for key in KEYS[:2]]
    both = [sum(of_text) for of_text in zip(*sums, strict=True)]
    assert recorded(halved["modest"], *KEYS[:2]) == pytest.approx(both, rel=1e-5)
    assert "5 texts of 10 tokens do not fit into memory: continuing with 3" in caplog.text


@pytest.mark.parametrize("runs_model", [False, True])
def test_the_last_blocks_run_only_for_the_final_state(lm, saes, tmp_path, runs_model):
    n_run = 0

    def count(*_):
        nonlocal n_run
        n_run += 1

    hook = lm.blocks[-1].mlp.register_forward_hook(count)
    texts = text_pass(lm)
    lm.states(torch.ones(1, 2, dtype=torch.int64), (0,))  # learns conventions in a full forward
    n_run = 0
    recorders = {
        "first": Totals(tmp_path / "first", singles()),
        "second": Totals(tmp_path / "second", (KEYS[:2],), runs_model),
    }
    texts.record(saes, recorders, "record")
    hook.remove()
    assert n_run == (distinct(texts) if runs_model else 0)
    assert {final for _, _, _, final in recorders["first"].seen} == {runs_model}
