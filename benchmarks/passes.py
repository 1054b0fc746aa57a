"""Measure the rows of ``bench.py`` on a pass over the texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measures import Size
from measuring import Measured, in_turn
from plain import plain_skip_layers

from saematch.core.match import Match
from saematch.core.pairs import NO_ARM, SaeKey, pair_of
from saematch.core.tables import Row
from saematch.evaluate.co_activation import CoActivation
from saematch.evaluate.evaluation import Subject
from saematch.evaluate.intervals import Intervals
from saematch.evaluate.measures import Cell, Measures
from saematch.evaluate.skipping import Skipping
from saematch.evaluate.splice import INCREMENT_FREE, MATCHLESS
from saematch.explain.contexts import ContextStore
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.matchers import Random
from saematch.matching.matches import match_pairs
from saematch.matching.objectives.parts import Parts
from saematch.matching.pairing import Neighbours
from saematch.matching.store import MatchStore
from saematch.sae.activations import encode
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Forward, Models, Recorder
from saematch.sae.sources.source import ZooSaes
from saematch.sae.suites import SaeShelf
from saematch.texts.readers import Reader
from saematch.texts.sources import ZooTexts
from saematch.texts.tokens import TokenBatch, tokenise
from saematch.texts.trainer import TrainerSpec

TEXT_SET = "all texts"
BOTH_SCALES = ("permute", "permute_raw")
ARMS = {
    name: Arm("threshold", Parts(), Random(seed), BOTH_SCALES if seed < 2 else ("permute",))
    for seed, name in enumerate(("folded", "unfolded", "identity", "random"))
}
"""Arms of the experiment skip_layers. Matches are random, since time does not depend on them."""
STRATEGIES = tuple(name for name in MATCHLESS if name != INCREMENT_FREE)
"""Strategies without a match that need no calibration texts."""
SKIPPING = Skipping(STRATEGIES)
"""The evaluation with every strategy."""


@dataclass(frozen=True)
class Workload:
    """SAEs, matches and texts of the rows on texts, as in the demo."""

    subject: Subject
    """The demo's SAEs with random matches."""
    reader: Reader

    @property
    def batches(self) -> tuple[TokenBatch, ...]:
        """Batches of the texts."""
        return self.reader.tokens[TEXT_SET]

    @property
    def text_pass(self) -> TextPass:
        """The pass over the texts."""
        return TextPass({"": self.reader}, Models(), TrainerSpec("cpu"))

    def recorders(self, folder: Path) -> dict[str, Recorder]:
        """Return a recorder of each evaluation; their files go into ``folder``."""
        subject = replace(self.subject, folder=folder)
        return {
            "skipping": SKIPPING.recorder(subject),
            "co_activation": CoActivation().recorder(subject),
        }

    def contexts(self, folder: Path) -> ContextStore:
        """Return the store of contexts in ``folder``."""
        return ContextStore(self.subject.saes, self.text_pass, folder, n_top=10, n_samples=10)


@cache
def workload(size: Size) -> Workload:
    """Return the demo's SAEs with random matches, its model and its texts."""
    lm = LmSource("zoo", "saematch-zoo").load()
    source = ZooSaes("chain", 1024, 20)
    saes = SaeShelf.of({SaeKey("default", layer): source.load(layer) for layer in size.layers})
    pairs = Neighbours()({"default": list(size.layers)})
    with TemporaryDirectory() as folder:
        match_set = match_pairs(saes, pairs, ARMS, MatchStore(Path(folder)), Path(folder))
    text_sets = ZooTexts(("prose", "docs", "code"), size.n_texts, size.max_tokens).load()
    batches = tuple(
        batch for texts in text_sets for batch in tokenise(texts, lm, size.max_tokens).batches(16)
    )
    subject = Subject(saes, match_set, ARMS, {"default": source})
    return Workload(subject, Reader(lm, {TEXT_SET: batches}))


def skip_layers(size: Size) -> Measured:
    """Measure all work of skip_layers on texts, and check its numbers against the peer's."""
    work = workload(size)
    cells = cells_of(work.subject)
    numbers: dict[Cell, tuple[float, float]] = {}
    rows: list[Row] = []

    def ours() -> None:
        rows[:] = strategies(work)

    def peer() -> None:
        numbers.update(plain_skip_layers(work.subject.saes, cells, work.reader.lm, work.batches))

    measured = in_turn(ours, peer, size.repeats)
    assert len(rows) == len(numbers), (len(rows), len(numbers))
    for row in rows:
        cell = Cell(pair_of(row), row["arm"], row["dataset"], row["strategy"])
        explained, delta = numbers[cell]
        assert abs(row["explained_variance"] - explained) < 1e-3 * max(1, abs(explained)), row
        assert abs(row["delta_loss"] - delta) < 1e-3, row
    return measured


def cells_of(subject: Subject) -> dict[Cell, Match | None]:
    """Return the cells of the table ``strategies`` with their matches, None without a match."""
    cells: dict[Cell, Match | None] = {}
    for pair in subject.matches.pairs:
        for arm, match in subject.matches.of(pair).items():
            for strategy in ARMS[arm].decode:
                cells[Cell(pair, arm, TEXT_SET, strategy)] = match
        for strategy in STRATEGIES:
            cells[Cell(pair, NO_ARM, TEXT_SET, strategy)] = None
    return cells


def strategies(work: Workload) -> list[Row]:
    """Evaluate the matches on the texts, and return the rows of the table ``strategies``."""
    with TemporaryDirectory() as folder:
        recorders = work.recorders(Path(folder))
        recordings = work.text_pass.record(work.subject.saes, recorders, "evaluate")
        measures = Measures.of(work.reader.tokens, Intervals())
        subject = replace(work.subject, measures=measures)
        return SKIPPING.tables(subject, recordings["skipping"]).rows("strategies")


@torch.inference_mode()
def evaluation(size: Size) -> Measured:
    """Measure the evaluation against the blocks and heads that no method can avoid."""
    work = workload(size)
    recorders = work.recorders(Path()).values()  # `record` alone writes no files

    def ours() -> None:
        for batch in work.batches:
            forward = forward_of(work, batch, size.layers)
            for recorder in recorders:
                recorder.record(forward)

    return in_turn(
        ours, lambda: [strictly_needed(work, batch) for batch in work.batches], size.repeats
    )


def forward_of(work: Workload, batch: TokenBatch, layers: tuple[int, ...]) -> Forward:
    """Return one forward on a batch, as a pass gives it to recorders."""
    lm = work.reader.lm
    hidden, final = lm.capture(batch.ids, layers)
    states = {layer: x[batch.counts].float() for layer, x in hidden.items()}
    saes = dict(work.subject.saes)
    return Forward(lm, batch, "", Models(), saes, hidden, final, {"": states})


def strictly_needed(work: Workload, batch: TokenBatch) -> None:
    """Run the original model once, then the later blocks and the head for each splice."""
    calls: list[tuple[tuple, dict]] = []
    lm = work.reader.lm
    hooks = [
        block.register_forward_pre_hook(
            lambda _module, args, settings: calls.append((args, settings)), with_kwargs=True
        )
        for block in lm.blocks
    ]
    try:
        _, final = lm.capture(batch.ids, ())
    finally:
        for hook in hooks:
            hook.remove()
    states, targets = final[batch.predicts], batch.ids.roll(-1, dims=1)[batch.predicts]
    lm.token_losses(states, targets)
    for splice in SKIPPING.recorder(work.subject).splices:
        target = splice.pair.target.layer
        for block, (args, kwargs) in list(zip(lm.blocks, calls, strict=True))[target + 1 :]:
            block(*args, **kwargs)
        lm.token_losses(states, targets)


def contexts(size: Size) -> Measured:
    """Measure the pass that keeps contexts against forwards and encoding."""
    work = workload(size)

    @torch.inference_mode()
    def bare() -> None:
        for batch in work.batches:
            hidden, _ = work.reader.lm.capture(batch.ids, size.layers)
            for key, sae in work.subject.saes.items():
                encode(sae, hidden[key.layer][batch.counts])

    def ours() -> None:
        with TemporaryDirectory() as folder:
            store = work.contexts(Path(folder))
            recorder = store.recorder(Path(folder) / "batches")
            assert recorder is not None
            recordings = work.text_pass.record(
                work.subject.saes, {"contexts": recorder}, "contexts"
            )
            store.contexts(recordings["contexts"])

    return in_turn(ours, bare, size.repeats)


def one_pass(size: Size) -> Measured:
    """Measure one pass for contexts and co-activation against a pass for each of them."""
    work = workload(size)

    def ours() -> None:
        record(work, ("co_activation", "contexts"))

    def peer() -> None:
        record(work, ("co_activation",))
        record(work, ("contexts",))

    return in_turn(ours, peer, size.repeats)


def record(work: Workload, names: tuple[str, ...]) -> None:
    """Run the named recorders in one pass over the texts, into a temporary folder."""
    with TemporaryDirectory() as folder:
        recorders = work.recorders(Path(folder))
        recorder = work.contexts(Path(folder)).recorder(Path(folder))
        assert recorder is not None
        recorders["contexts"] = recorder
        chosen = {name: recorders[name] for name in names}
        work.text_pass.record(work.subject.saes, chosen, "record")
