"""One pass over the texts for many recorders, in as few parts as memory allows."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from saematch.core.code import code_of
from saematch.core.errors import InputError
from saematch.core.files import hashed
from saematch.core.pairs import SaeKey
from saematch.core.progress import progress
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.sae.recorders import Forward, Models, Recorder, Recording
from saematch.sae.suites import Saes, SaeShelf
from saematch.texts.batch_work import Kept
from saematch.texts.readers import Reader
from saematch.texts.text_pass import run_batches
from saematch.texts.tokens import TokenBatch
from saematch.texts.trainer import TrainerSpec


@dataclass(frozen=True)
class _Part:
    """The work of a part of a pass: items whose SAEs fit into memory together."""

    saes: Saes
    recorders: Mapping[str, Recorder]
    models: Models
    model: str
    others: Mapping[str, LanguageModel] = field(default_factory=dict)

    def to(self, device: torch.device) -> _Part:
        others = {
            label: lm if lm.is_dispatched else lm.to(device) for label, lm in self.others.items()
        }
        saes = {key: sae.to(device) for key, sae in self.saes.items()}
        return replace(self, saes=saes, others=others)

    @torch.inference_mode()
    def __call__(
        self, lm: LanguageModel, batch: TokenBatch, recorders: Collection[str]
    ) -> dict[str, Kept]:
        layers = self._layers(self.model)
        if any(self.recorders[name].runs_model for name in recorders):
            hidden, final = lm.capture(batch.ids, layers)
        else:
            hidden, final = lm.states(batch.ids, layers), None
        of_models: dict[str, Mapping[int, Tensor]] = {self.model: hidden}
        for label, other_lm in self.others.items():
            of_models[label] = other_lm.states(batch.ids, self._layers(label))
        states = {
            label: {layer: x[batch.counts].float() for layer, x in of_model.items()}
            for label, of_model in of_models.items()
        }
        forward = Forward(
            lm, batch, self.model, self.models, dict(self.saes), hidden, final, states
        )
        return {name: self._record(self.recorders[name], forward) for name in recorders}

    def _record(self, recorder: Recorder, forward: Forward) -> Kept:
        """Record in full precision, unless the recorder runs the model."""
        if recorder.runs_model:
            return recorder.record(forward)
        with torch.autocast(forward.batch.ids.device.type, enabled=False):
            return recorder.record(forward)

    def join(self, recorder: str, first: Kept, second: Kept, n_texts: int) -> Kept:
        return self.recorders[recorder].join(first, second, n_texts)

    def _layers(self, model: str) -> tuple[int, ...]:
        return tuple(sorted({key.layer for key in self.saes if self.models.of(key) == model}))


@dataclass(frozen=True)
class TextPass:
    """A pass over the texts: language models with their texts, and how they are run."""

    readers: Mapping[str, Reader]
    """Language models and their batches, by label; the run's own model has the label ``""``."""
    models: Models
    trainer: TrainerSpec

    def record(
        self, saes: SaeShelf, recorders: Mapping[str, Recorder], label: str
    ) -> dict[str, Recording]:
        """Record every text set; ``label`` is its name on the progress bar.

        The pass has as few parts as memory allows: one for each group of SAEs that fit into memory
        together. It skips files of earlier passes, and batches without missing files.
        """
        files: dict[str, dict[str, list[tuple[Path, ...]]]] = {
            name: {text_set: [] for text_set in self.readers[""].tokens} for name in recorders
        }
        parts = self._parts(saes, recorders)
        readers = [self.readers[part.model] for part in parts]
        n_batches = sum(len(of_set) for reader in readers for of_set in reader.tokens.values())
        with progress(label, n_batches, "batch") as bar:
            for part, reader in zip(parts, readers, strict=True):
                for text_set, batches in reader.tokens.items():
                    paths = self._paths(part, saes, batches)
                    run_batches(self.trainer, part, reader.lm, batches, bar, paths)
                    for name, of_set in paths.items():
                        files[name][text_set].append(of_set)
        return {
            name: Recording({text_set: tuple(of_set) for text_set, of_set in of_sets.items()})
            for name, of_sets in files.items()
        }

    def identity(self, label: str) -> list[str | None]:
        """Return everything that determines the hidden states of a model, except the texts."""
        lm = self.readers[label].lm
        dtype = str(next(lm.parameters()).dtype)
        return [lm.name, lm.revision, dtype, self.trainer.precision, self.trainer.device_type]

    def _paths(
        self, part: _Part, saes: SaeShelf, batches: Sequence[TokenBatch]
    ) -> dict[str, tuple[Path, ...]]:
        """Return the file of each recorder for each batch."""
        paths = {}
        for name, recorder in part.recorders.items():
            needed = frozenset().union(*recorder.needs().values())
            keys = [key for key in saes if key in needed]
            code = code_of(type(recorder), TextPass, LmSource)
            facts = [code, type(recorder).__qualname__, *recorder.facts()]
            facts += [[label, self.identity(label)] for label in sorted(self._labels(keys))]
            facts += [[list(k), self.models.of(k), saes.facts[k].identity] for k in keys]
            hashes = [hashed([*facts, batch.identity]) for batch in batches]
            paths[name] = tuple(recorder.folder / f"{key}.safetensors" for key in hashes)
        return paths

    def _parts(self, saes: SaeShelf, recorders: Mapping[str, Recorder]) -> list[_Part]:
        """Assign each item of each recorder to one part whose SAEs fit into memory together."""
        needs = {name: recorder.needs() for name, recorder in recorders.items()}
        for name, recorder in recorders.items():
            self._check(name, recorder)
        groups = self._groups(
            saes,
            [(keys, recorders[name].runs_model) for name in needs for keys in needs[name].values()],
        )
        items: list[dict[str, list[Hashable]]] = [{} for _ in groups]
        for name, of_recorder in needs.items():
            for item, keys in of_recorder.items():
                number = next(
                    number
                    for number, (labels, group) in enumerate(groups)
                    if keys <= group
                    and not (recorders[name].runs_model and {labels[0]} != self._labels(keys))
                )
                items[number].setdefault(name, []).append(item)
        parts = []
        for (labels, _), chosen in zip(groups, items, strict=True):
            needed = {key for name in chosen for item in chosen[name] for key in needs[name][item]}
            parts.append(
                _Part(
                    saes.only([key for key in saes if key in needed]),
                    {name: recorders[name].only(of_name) for name, of_name in chosen.items()},
                    self.models,
                    labels[0],
                    {label: self.readers[label].lm for label in labels[1:]},
                )
            )
        return [part for part in parts if part.recorders]

    def _check(self, name: str, recorder: Recorder) -> None:
        """Raise ``InputError`` for an item that no part of a pass can record."""
        for item, keys in recorder.needs().items():
            n_models = len(self._labels(keys))
            if n_models == 0 or (recorder.runs_model and n_models > 1):
                raise InputError(
                    f"the recorder of {name}: {item} needs SAEs of {n_models} language models; "
                    f"it must be {'one' if recorder.runs_model else 'at least one'}"
                )

    def _groups(
        self, saes: SaeShelf, needs: Sequence[tuple[frozenset[SaeKey], bool]]
    ) -> list[tuple[tuple[str, ...], set[SaeKey]]]:
        """Return groups of SAEs that fit into memory together, each with labels of its models.

        ``needs`` has the SAEs of each item, and whether the item runs the model. The SAEs of a
        group belong to one model, or to the models that one item spans.
        """
        together: dict[tuple[str, ...], list[frozenset[SaeKey]]] = {}
        spanned = {key for keys, _ in needs if len(self._labels(keys)) > 1 for key in keys}
        for keys, runs_model in sorted(needs, key=lambda item: -len(item[0])):  # pairs first
            if len(keys) > 1 or runs_model or not keys <= spanned:
                together.setdefault(tuple(sorted(self._labels(keys))), []).append(keys)
        return [(labels, group) for labels, sets in together.items() for group in saes.parts(sets)]

    def _labels(self, keys: Collection[SaeKey]) -> set[str]:
        return set(map(self.models.of, keys))
