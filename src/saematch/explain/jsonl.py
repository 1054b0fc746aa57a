"""Read explanations from the user's own files, with one JSON object per line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from saematch.core.errors import InputError
from saematch.core.files import expand_home, parse_json, reading
from saematch.core.pairs import SaeKey
from saematch.core.specs import spec
from saematch.explain.explanations import Explanation, FeatureKey, Inputs
from saematch.sae.suites import SaeFacts, Saes, SaeShelf
from saematch.texts.reading import check_unicode

Texts = dict[int, tuple[Explanation, ...]]
"""Explanations of one SAE, by feature."""


@spec("explain")
class JsonlExplanations:
    """Spec of explanations in JSON lines.

    A line has ``feature`` (from 0) and ``text``. It may have ``explainer``; the default is the name
    of the file. If a file has explanations of several layers, a line also has ``layer``. Several
    lines about one feature are several explanations, in the order of the file.
    """

    on_texts: ClassVar[bool] = False
    asks_llm: ClassVar[bool] = False

    path: str
    """Path of one file for each layer, with ``{layer}`` for the number of the layer, or of one file
    for all layers, whose lines have ``layer``. ``{suite}`` is replaced by the suite's name."""

    def __post_init__(self) -> None:
        expand_home(self, "path")
        if not self.path:
            raise InputError("explain.path is empty: name a file, as in explain.path=labels.jsonl")

    def check(self, saes: Saes) -> None:
        """Read all files and check them.

        Raises ``InputError``, with file and line, for a missing file, a line that is not a JSON
        object, a missing or wrong field, an empty text, and a feature that the SAE does not have.
        Also raises it if an SAE has no explanation, or if two SAEs of one layer share a file, since
        lines cannot distinguish them.
        """
        self._read(saes)

    def recorder(self, saes: Saes, inputs: Inputs) -> None:
        """Return None: nothing is recorded."""

    def open(self, saes: Saes, inputs: Inputs) -> JsonlTexts:
        """Read the files again; ``InputError`` as in ``check``."""
        return JsonlTexts(self._read(saes))

    def _read(self, saes: Saes) -> dict[SaeKey, Texts]:
        facts = SaeShelf.of(saes).facts
        if "{suite}" not in self.path:
            _check_one_a_layer(facts)
        by_file: dict[Path, list[SaeKey]] = {}
        for key in facts:
            by_file.setdefault(self._file(key), []).append(key)
        texts: dict[SaeKey, dict[int, list[Explanation]]] = {key: {} for key in facts}
        for path, keys in by_file.items():
            for line in _lines(path, keys[0].layer if "{layer}" in self.path else None):
                for key in keys:
                    if key.layer != line.layer:
                        continue
                    _check_feature(line, key, facts[key])
                    texts[key].setdefault(line.feature, []).append(line.explanation)
        for key, of_sae in texts.items():
            if not of_sae:
                raise InputError(f"{self._file(key)} explains no feature of the SAE of {key.name}")
        return {
            key: {feature: tuple(of_feature) for feature, of_feature in sorted(of_sae.items())}
            for key, of_sae in texts.items()
        }

    def _file(self, key: SaeKey) -> Path:
        path = self.path.replace("{layer}", str(key.layer))
        return Path(path.replace("{suite}", key.suite))


@dataclass(frozen=True)
class JsonlTexts:
    """Explanations read from files."""

    asks_llm: ClassVar[bool] = False
    texts: Mapping[SaeKey, Texts]

    def features(self, sae: SaeKey) -> list[int]:
        """Return the features that have an explanation, in ascending order."""
        return list(self.texts[sae])

    def of(
        self, features: Sequence[FeatureKey], others: bool = False
    ) -> dict[FeatureKey, tuple[Explanation, ...]]:
        """Return the explanations of features, in the order of the file."""
        return {
            key: self.texts[key.sae][key.feature]
            for key in features
            if key.feature in self.texts[key.sae]
        }


def _check_one_a_layer(facts: Mapping[SaeKey, SaeFacts]) -> None:
    by_layer: dict[int, SaeFacts] = {}
    for key, sae in facts.items():
        first = by_layer.setdefault(key.layer, sae)
        if first.origin != sae.origin:
            raise InputError(
                f"the run has two SAEs of layer {key.layer}, {first.origin.where} and "
                f"{sae.origin.where}, and the lines of one file cannot distinguish them: give each "
                "suite its own file, with {suite} in explain.path"
            )


def _check_feature(line: _Line, key: SaeKey, sae: SaeFacts) -> None:
    if line.feature >= sae.n_features:
        raise InputError(
            f"{line.where}: the SAE of {key.name} has no feature {line.feature}, only features 0 "
            f"to {sae.n_features - 1}"
        )


class _Line(NamedTuple):
    where: str
    layer: int
    feature: int
    explanation: Explanation


def _lines(path: Path, of_file: int | None) -> Iterator[_Line]:
    """Yield the lines of a file of one layer, or of several layers if ``of_file`` is None."""
    try:
        with reading(path, "the explanations in"):
            content = path.read_bytes()
        lines = content.decode("utf-8-sig").split("\n")  # other line ends may be part of a text
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the explanations in {path}: {error}") from error
    tag = hashlib.sha256(content).hexdigest()[:16]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where} is not a JSON object: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{where} is not a JSON object: {line.strip()[:40]!r}")
        entry = {"layer": of_file, "explainer": path.stem, **row}
        layer, feature = (_number(entry, name, where) for name in ("layer", "feature"))
        text, explainer = (_text(entry, name, where) for name in ("text", "explainer"))
        if of_file not in (None, layer):
            raise InputError(f"{where} is of layer {layer}, but the file is of layer {of_file}")
        yield _Line(where, layer, feature, Explanation(text, explainer, tag=tag))


def _number(row: dict[str, Any], name: str, where: str) -> int:
    value = row.get(name)
    if type(value) is not int or value < 0:
        hint = "; or use one file for each layer, with {layer} in explain.path" * (name == "layer")
        raise InputError(f"{where}: {name!r} must be a whole number from 0, not {value!r}{hint}")
    return value


def _text(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {name!r} must be a text, not {value!r:.40}")
    check_unicode(value, where)
    return value
