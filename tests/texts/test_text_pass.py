"""What the runner does when memory runs out."""

import logging
import traceback
from dataclasses import dataclass, field

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from conftest import TEXTS, random_sae
from saematch.core.errors import FileError, InputError
from saematch.core.pairs import SaeKey
from saematch.explain.contexts import Peaks, find_peaks
from saematch.lm.source import LmSource
from saematch.sae.activations import SparseFeatures
from saematch.texts import lightning_runner
from saematch.texts.sources import TextSet
from saematch.texts.sums import TextSums, write_sums
from saematch.texts.text_pass import run_batches
from saematch.texts.tokens import tokenise
from saematch.texts.trainer import TrainerSpec

CPU = TrainerSpec(accelerator="cpu")


@pytest.fixture(scope="module")
def lm(tiny):
    return LmSource(str(tiny / "lm"), "tiny").load()


@dataclass
class Greedy:
    """Work that fits up to ``fits`` texts; keeps each text's sum of token ids."""

    fits: int
    asked: list[int] = field(default_factory=list)

    def to(self, device):
        return self

    def __call__(self, lm, batch):
        self.asked.append(len(batch.ids))
        if len(batch.ids) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"sum": (batch.ids * batch.counts).sum(dim=1)}

    def join(self, one, other, n_texts):
        assert n_texts == len(one["sum"])
        return {"sum": torch.cat([one["sum"], other["sum"]])}


def done(work, lm, folder, batch_size=5):
    texts = TextSet("t", (*TEXTS, *TEXTS))
    batches = tokenise(texts, lm, 10).batches(batch_size)
    paths = tuple(folder / f"{n}.safetensors" for n in range(len(batches)))
    run_batches(CPU, work, lm, batches, "t", paths)
    return TextSums((paths,))["sum"]


def test_out_of_memory_halves_the_batch_and_says_so(lm, tmp_path, caplog):
    whole = done(Greedy(5), lm, tmp_path / "whole")
    work = Greedy(2)
    with caplog.at_level(logging.WARNING, "saematch"):
        halves = done(work, lm, tmp_path / "halves")
    assert torch.equal(halves, whole)
    # 5 do not fit, nor 3; the rest of the first batch and the second go on with 2 at a time
    assert work.asked == [5, 3, 2, 1, 2, 2, 1, 2]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "5 texts of 10 tokens do not fit into memory: going on with 3 at a time",
        "3 texts of 10 tokens do not fit into memory: going on with 2 at a time",
    ]


def test_one_text_that_does_not_fit_ends_in_what_to_lower(lm, tmp_path):
    with pytest.raises(ValueError, match=r"one text of 10 tokens does not fit.*max_tokens"):
        done(Greedy(0), lm, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_saes_that_do_not_fit_end_in_what_to_lower(lm, tmp_path):
    class Large(Greedy):
        loaded = 0

        def to(self, device):
            Large.loaded += 1
            if Large.loaded == 2:  # on the device, after the host's memory
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self

    with pytest.raises(ValueError, match=r"language model and the SAEs do not fit.*sae_memory"):
        done(Large(5), lm, tmp_path)


def test_halves_of_contexts_are_joined_as_the_whole(lm):
    """The second half's texts are counted on."""
    features = torch.tensor([0, 1, 1, 0])
    values = torch.tensor([0.5, 2.0, 2.5, 0.1])
    whole = SparseFeatures(torch.arange(4), features, values, 2)
    text, position = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 1, 1])
    key = SaeKey("default", 1)

    def kept(start, end, first):
        some = SparseFeatures(torch.arange(end - start), features[start:end], values[start:end], 2)
        found = find_peaks(some, text[start:end] - first, position[start:end])
        return {f"default|1|{name}": value for name, value in vars(found).items()}

    expected = find_peaks(whole, text, position)
    joined = Peaks({key: random_sae(0)}).join(kept(0, 3, 0), kept(3, 4, 2), 2)
    for name, value in vars(expected).items():
        assert torch.equal(joined[f"default|1|{name}"], value), name


def test_no_more_devices_than_batches():
    two = TrainerSpec(accelerator="cpu", devices=2, strategy="ddp_spawn")
    assert two.at_most(2) == two
    assert two.at_most(3) == two
    assert (two.at_most(1).devices, two.at_most(1).strategy) == (1, "auto")
    assert CPU.at_most(1) == CPU


def test_a_batch_that_another_run_does_meanwhile_is_not_done_again(lm, tmp_path):
    @dataclass
    class Beside(Greedy):
        def __call__(self, lm, batch):
            kept = super().__call__(lm, batch)
            if len(self.asked) == 1:
                write_sums(tmp_path / "1.safetensors", {"sum": torch.full((5,), 7)})
                write_sums(tmp_path / "0.safetensors", {"sum": torch.full((5,), 8)})
            return kept

    work = Beside(5)
    found = done(work, lm, tmp_path)
    assert work.asked == [5]
    assert found.tolist() == [8] * 5 + [7] * 5, "all runs read the file that was there first"


class Unusable(InputError):
    """A mistake with a class of its own, as many libraries' errors get."""


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (Unusable("the file is damaged:\nfetch it again"), InputError,
         "the file is damaged: fetch it again"),
        (FileError("no space"), InputError, "no space"),
        (KeyError("x"), ProcessRaisedException, "KeyError"),
    ],
)  # fmt: skip
def test_a_mistake_in_one_of_several_processes_ends_in_its_sentence(
    error, kind, text, lm, tmp_path, monkeypatch
):
    def fails(*_, **__):
        try:
            try:
                raise InputError("an earlier one")
            except InputError as first:
                raise error from first
        except (InputError, KeyError):
            printed = f"\n\n-- Process 1 terminated:\n{traceback.format_exc()}"
            raise ProcessRaisedException(printed, 1, 2) from None

    monkeypatch.setattr(lightning_runner.L.Trainer, "test", fails)
    with pytest.raises(kind) as caught:
        done(Greedy(5), lm, tmp_path)
    assert str(caught.value) == text or (kind is ProcessRaisedException)
