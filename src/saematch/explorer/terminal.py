"""Printing of single features for ``saematch features``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from saematch.core.pairs import Pair, SaeKey
from saematch.core.safe_text import visible
from saematch.core.tables import Row, rows_of
from saematch.explorer.paths import Link, Node, Paths, nodes_of
from saematch.explorer.run_data import RunData

NUMBERS = {
    "threshold": "threshold",
    "norm_W_enc": "|W_enc|",
    "norm_W_dec": "|W_dec|",
    "b_enc": "b_enc",
    "density": "density",
    "mean_activation": "mean activation",
    "max_activation": "max activation",
}
"""Labels of a feature's numbers."""
WIDTH = 100
"""Number of characters of a line if the output is no terminal."""
LEGEND = (
    "numbers on a path: of the link from the line above",
    "score: similarity of both features by the arm's objective; each arm has its own scale",
    "effect: how far the partner's activation falls if the source feature is removed; 1 is off",
    "passes: the interval of the effect is above the control (docs/verify.md)",
)
"""Meaning of the columns; effects and findings only in runs with ``verify``."""
SHORT = 160
"""Largest number of characters of a context."""


def print_features(run: RunData, nodes: Sequence[Node], arms: Sequence[str]) -> None:
    """Print numbers, explanation, paths, partners and verdicts of each feature."""
    printer = _Printer(run, arms)
    for node in nodes:
        printer.print(node)
    printer.print_legend()


class _Printer:
    """Console, and the data that several features share."""

    def __init__(self, run: RunData, arms: Sequence[str]) -> None:
        self.run = run
        self.paths = {arm: Paths(run, arm) for arm in arms}
        console = Console()
        self.console = console if console.is_terminal else Console(width=WIDTH)
        self.features = cache(run.features)
        self.verified = cache(run.verified)
        self.contexts = cache(run.contexts)

    def print(self, node: Node) -> None:
        n_features = self.run.saes[node.key]
        self._line(f"\nfeature {node.feature} of {node.key.name} ({n_features} features)", "bold")
        for line in self._facts(node):
            self._line(line)
        self._print_answers(node)
        for arm, paths in self.paths.items():
            links = paths.path(node)
            self._title(f"path under {arm}")
            self.console.print(self._path_table(arm, node, nodes_of(node, links), links))
        for arm, paths in self.paths.items():
            for pair in (pair for pair in paths.pairs if node.key in pair):
                self._print_partners(arm, pair, node)
        judged = self.run.judged(*node)
        if judged:
            self._title("verdicts of the judge")
            for row in judged:
                self._line(_verdict(row))

    def print_legend(self) -> None:
        """Print what the columns of scores and effects mean."""
        tested = any(self.verified(pair) is not None for pair in self.run.pairs)
        self._line("")
        for line in LEGEND if tested else LEGEND[:2]:
            self._line(line)

    def _print_answers(self, node: Node) -> None:
        """Print in a line for each arm whether the feature carries on in the next SAE."""
        for pair in (pair for pair in self.run.pairs if pair.source == node.key):
            self._title(f"does it carry on in {pair.target.name}?")
            for arm, paths in self.paths.items():
                if pair in paths.pairs:
                    self._line(f"{arm}: {self._answer(arm, paths.partners(pair, node.feature))}")

    def _answer(self, arm: str, links: Sequence[Link]) -> str:
        if not links:
            return "no partner"
        best, pair = links[0], links[0].pair
        partner = f"feature {best.target.feature}"
        if self.verified(pair) is None:
            return f"best partner {partner}, not tested: the run has no evaluation verify"
        verified = self._verified(arm, best)
        if not verified:
            return f"best partner {partner}, not tested: verify did not choose the feature"
        answer = f"{partner} {_text(verified['finding']) or 'has no finding'}"
        if not _effect(verified):
            return answer
        control = _number(verified.get("floor_95")) or "none"
        return f"{answer}: effect {_effect(verified)}, control {control}"

    def _facts(self, node: Node) -> Iterator[str]:
        """Yield lines with the explanation, numbers, top tokens and top context."""
        row = self.features(node.key).loc[node.feature]
        explanation = _text(row.get("explanation"))
        if explanation:
            yield f"explanation: {explanation} ({_text(row.get('explainer')) or 'unknown'})"
        else:
            yield "explanation: none"
        numbers = [
            f"{label} {float(row[name]):.3g}"
            for name, label in NUMBERS.items()
            if name in row and pd.notna(row[name])
        ]
        if numbers:
            yield ", ".join(numbers)
        if _text(row.get("top_tokens")):
            yield f"top tokens: {_text(row['top_tokens'])}"
        contexts = self.contexts(node.key)
        if contexts is not None:
            of_feature = contexts[(contexts["feature"] == node.feature) & (contexts["rank"] == 0)]
            for context in rows_of(of_feature[["tokens", "values", "dataset", "text"]][:1]):
                yield f"top context ({context['dataset']} {context['text']}): {_context(context)}"

    def _path_table(
        self, arm: str, start: Node, nodes: Sequence[Node], links: Sequence[Link]
    ) -> Table:
        rows = []
        for node, link in zip(nodes, [None, *links], strict=True):
            verified = {} if link is None else self._verified(arm, link)
            rows.append({
                "": ">" if node == start else "",
                "layer": node.key.label,
                "feature": str(node.feature),
                "score": "" if link is None else _number(link.score),
                "effect": _effect(verified),
                "finding": _text(verified.get("finding")),
                "explanation": self._explanation(node),
            })  # fmt: skip
        return _table(rows)

    def _print_partners(self, arm: str, pair: Pair, node: Node) -> None:
        """Print the links of a feature in a pair, as its source or its target."""
        forward = node.key == pair.source
        paths = self.paths[arm]
        links = (paths.partners if forward else paths.sources)(pair, node.feature)
        kind, other = ("partners", pair.target) if forward else ("sources", pair.source)
        if not links:
            self._title(f"no {kind} in {other.name} under {arm}")
            return
        self._title(f"{kind} in {other.name} under {arm}")
        rows = []
        for link in links:
            verified = self._verified(arm, link)
            end = link.target if forward else link.source
            rows.append({
                "feature": str(end.feature),
                "weight": _number(link.weight),
                "score": _number(link.score),
                "off rate": _number(verified.get("off_rate")),
                "effect": _effect(verified),
                "control": _number(verified.get("floor_95")),
                "finding": _text(verified.get("finding")),
                "explanation": self._explanation(end),
            })  # fmt: skip
        self.console.print(_table(rows))

    def _verified(self, arm: str, link: Link) -> Row:
        """Return the row of ``verify`` for a link; empty if the link was not tested."""
        frame = self.verified(link.pair)
        if frame is None:
            return {}
        tested = frame[
            (frame["arm"] == arm)
            & (frame["feature"] == link.source.feature)
            & (frame["partner"] == link.target.feature)
        ]
        return next(iter(rows_of(tested)), {})

    def _explanation(self, node: Node) -> str:
        frame = self.features(node.key)
        return _text(frame["explanation"][node.feature]) if "explanation" in frame else ""

    def _title(self, text: str) -> None:
        self._line(f"\n{text}", "bold")

    def _line(self, text: str, style: str = "") -> None:
        """Print one line, after the empty lines that the text begins with."""
        body = text.lstrip("\n")
        safe = text[: len(text) - len(body)] + visible(body)
        self.console.print(Text(safe, style), highlight=False, soft_wrap=True)


def _table(rows: Sequence[dict[str, str]]) -> Table:
    """Return a table of the columns that have a value; the explanation gets the rest of a line."""
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.expand = "explanation" in names
    for name in names:
        if name == "explanation":
            table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1, min_width=8)
        else:
            table.add_column(name, justify="left" if name in ("", "finding") else "right")
    for row in rows:
        table.add_row(*(Text(visible(row[name])) for name in names))
    return table


def _text(value: Any) -> str:
    """Return text of a cell in one line that is safe to print; empty if it is missing."""
    return visible(" ".join(value.split())) if isinstance(value, str) else ""


def _number(value: Any) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.3f}"


def _effect(row: Row) -> str:
    """Return the effect with its interval; empty without one."""
    effect, low, high = (row.get(name) for name in ("effect", "effect_low", "effect_high"))
    if effect is None:
        return ""
    interval = "" if low is None or high is None else f" [{_short(low)}, {_short(high)}]"
    return _short(effect) + interval


def _short(value: Any) -> str:
    return f"{value:.2f}"


def _context(context: Row) -> str:
    """Return the tokens of a context around its peak, which is in brackets."""
    tokens: Any = context["tokens"]
    values: Any = context["values"]
    peak = int(np.argmax(values))
    before, after = "".join(tokens[:peak]), "".join(tokens[peak + 1 :])
    half = SHORT // 2
    text = f"{before[-half:]}[{tokens[peak]}]{after[:half]}"
    return visible(" ".join(text.split()))


def _verdict(row: Row) -> str:
    source = Node(SaeKey(str(row["source_suite"]), row["source_layer"]), row["source_feature"])  # type: ignore[arg-type]
    target = Node(SaeKey(str(row["target_suite"]), row["target_layer"]), row["target_feature"])  # type: ignore[arg-type]
    reason = _text(row["evaluation"])
    verdict = f"{source.name} and {target.name} ({row['arm']}, {row['role']}): {row['label']}"
    return verdict + (f", {reason}" if reason else "")
