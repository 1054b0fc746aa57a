"""The runner when memory runs out."""

import logging
import traceback
from dataclasses import dataclass, field

import lightning
import pytest
import torch
from filelock import FileLock
from torch.multiprocessing import ProcessRaisedException

from conftest import TEXTS
from saematch.core.claims import lock_of, sharing
from saematch.core.errors import FileError, InputError
from saematch.core.progress import Bar
from saematch.lm.source import LmSource
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
    sizes: list[int] = field(default_factory=list)
    """Number of texts in each call."""
    recorders: list[list[str]] = field(default_factory=list)
    """Recorders of each call."""

    def to(self, device):
        return self

    def __call__(self, lm, batch, recorders):
        self.sizes.append(len(batch.ids))
        self.recorders.append(sorted(recorders))
        if len(batch.ids) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sums = (batch.ids * batch.counts).sum(dim=1)
        return {name: {"sum": sums * (n + 1)} for n, name in enumerate(recorders)}

    def join(self, recorder, first, second, n_texts):
        assert n_texts == len(first["sum"])
        return {"sum": torch.cat([first["sum"], second["sum"]])}


def batches_of(lm, batch_size=5):
    return tokenise(TextSet("t", (*TEXTS, *TEXTS)), lm, 10).batches(batch_size)


def paths_in(folder, batches):
    return tuple(folder / f"{n}.safetensors" for n in range(len(batches)))


def done(work, lm, folder, recorders=("r",)):
    """Do the work; return the sums of the first recorder."""
    batches = batches_of(lm)
    paths = {name: paths_in(folder / name, batches) for name in recorders}
    run_batches(CPU, work, lm, batches, Bar("t", len(batches), "batch"), paths)
    return TextSums((paths[recorders[0]],))["sum"]


def test_a_batch_is_done_once_for_the_recorders_that_lack_a_file(lm, tmp_path):
    work = Greedy(5)
    first = done(work, lm, tmp_path, ("a",))
    assert work.recorders == [["a"]] * 2
    (tmp_path / "a/1.safetensors").unlink()
    done(work, lm, tmp_path, ("a", "b"))
    assert work.recorders[2:] == [["b"], ["a", "b"]]
    assert torch.equal(done(work, lm, tmp_path, ("a", "b")), first)
    assert len(work.sizes) == 4, "no file is missing"


def test_out_of_memory_halves_the_batch_and_says_so(lm, tmp_path, caplog):
    whole = done(Greedy(5), lm, tmp_path / "whole")
    work = Greedy(2)
    with caplog.at_level(logging.WARNING, "saematch"):
        halves = done(work, lm, tmp_path / "halves")
    assert torch.equal(halves, whole)
    # 5 do not fit, nor 3; the rest of the first batch and the second go on with 2 at a time
    assert work.sizes == [5, 3, 2, 1, 2, 2, 1, 2]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "5 texts of 10 tokens do not fit into memory: continuing with 3 at a time",
        "3 texts of 10 tokens do not fit into memory: continuing with 2 at a time",
    ]


def test_one_text_that_does_not_fit_ends_in_what_to_lower(lm, tmp_path):
    with pytest.raises(ValueError, match=r"one text of 10 tokens does not fit.*max_tokens"):
        done(Greedy(0), lm, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


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


def test_no_more_devices_than_batches():
    two = TrainerSpec(accelerator="cpu", devices=2, strategy="ddp_spawn")
    assert two.at_most(2) == two
    assert two.at_most(3) == two
    assert (two.at_most(1).devices, two.at_most(1).strategy) == (1, "auto")
    assert CPU.at_most(1) == CPU


def test_a_batch_that_another_run_does_meanwhile_is_not_done_again(lm, tmp_path):
    @dataclass
    class Interfering(Greedy):
        def __call__(self, lm, batch, recorders):
            kept = super().__call__(lm, batch, recorders)
            if len(self.sizes) == 1:
                write_sums(tmp_path / "r/1.safetensors", {"sum": torch.full((5,), 7)})
                write_sums(tmp_path / "r/0.safetensors", {"sum": torch.full((5,), 8)})
            return kept

    work = Interfering(5)
    sums = done(work, lm, tmp_path)
    assert work.sizes == [5]
    assert sums.tolist() == [8] * 5 + [7] * 5, "all runs read the file that was there first"


def test_a_batch_of_another_process_is_skipped_and_then_waited_for(lm, tmp_path):
    """The other process is killed in its first batch and finishes its second."""
    paths = paths_in(tmp_path / "r", range(4))

    @dataclass
    class Noting(Greedy):
        first: list[int] = field(default_factory=list)
        """First token after BOS of each batch."""

        def __call__(self, lm, batch, recorders):
            self.first.append(int(batch.ids[0, 1]))
            kept = super().__call__(lm, batch, recorders)
            if len(self.first) == 2:
                write_sums(paths[2], {"sum": torch.full((3,), 7)})
                for lock in others:
                    lock.release()
            return kept

    work = Noting(3)
    batches = batches_of(lm, 3)
    with sharing(tmp_path / "locks"):
        others = [FileLock(lock_of(paths[number])) for number in (0, 2)]
        for lock in others:
            lock.acquire()
        bar = Bar("t", len(batches), "batch")
        run_batches(CPU, work, lm, batches, bar, {"r": paths})
    assert bar.done == len(batches)
    assert work.first == [int(batches[number].ids[0, 1]) for number in (1, 3, 0)]
    sums = TextSums((paths,))["sum"]
    assert sums[6:9].tolist() == [7, 7, 7]
    whole = done(Greedy(5), lm, tmp_path / "whole")
    assert torch.equal(sums[:6], whole[:6]) and torch.equal(sums[9:], whole[9:])


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

    monkeypatch.setattr(lightning.Trainer, "test", fails)
    with pytest.raises(kind) as caught:
        done(Greedy(5), lm, tmp_path)
    assert str(caught.value) == text or (kind is ProcessRaisedException)
