"""Ask a judge about pairs of features, and collect verdicts and explanations."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from saematch.chat.answers import read_text
from saematch.chat.questions import Judge, Question, Reply
from saematch.core.files import hashed
from saematch.core.safe_text import shortened
from saematch.core.tables import Row, Tables, frame_of, rows_of
from saematch.explain.explanations import Explanation, Explanations
from saematch.explain.prompts import EXPLAIN
from saematch.judge.design import Item, Judging, control_items, path_items, table_items
from saematch.judge.prompts import JUDGE, PARAPHRASE
from saematch.judge.verdicts import Verdict, read_verdict
from saematch.matching.matches import MatchSet

log = logging.getLogger(__name__)

Both = tuple[Explanation | None, Explanation | None]
"""Explanations of the source and of the target feature."""


@dataclass(frozen=True)
class Judgement:
    """An item, its explanations and the verdict."""

    item: Item
    source: Explanation | None
    target: Explanation | None
    verdict: Verdict

    def row(self) -> Row:
        """Return the row of the table ``judgements``."""
        item = self.item
        return {
            **item.pair.columns(),
            "arm": item.arm,
            "role": item.role,
            "start": item.start,
            "path": item.path,
            "source_feature": item.source_feature,
            "target_feature": item.target_feature,
            "label": self.verdict.label,
            "judge_score": self.verdict.score,
            "evaluation": self.verdict.evaluation,
            "source_explainer": self.source.explainer if self.source else None,
            "target_explainer": self.target.explainer if self.target else None,
            "source_explanation": self.source.text if self.source else None,
            "target_explanation": self.target.text if self.target else None,
        }


class _Items(NamedTuple):
    """Judgements to be made, without those that are repeated."""

    pairs: list[Item]
    examples: list[Item]
    controls: list[Item]


def judge_matches(
    matches: MatchSet,
    chains: bool,
    judging: Judging,
    explanations: Explanations,
    judges: tuple[Judge, Judge | None],
    tables: Tables,
) -> list[Judgement]:
    """Judge the paths of every arm, the examples and paths in the run's tables, and the controls.

    ``chains`` is that of the pairing. The second judge gets the pairs of the first. Raises
    ``AskingError`` if asking has to stop; the answers so far are stored.
    """
    judge, second = judges
    rng = np.random.default_rng(judging.seed)
    items = _items(matches, chains, judging, explanations, rng, tables)
    _announce(items, judging, explanations, judges)
    twice = [item for item in items.controls if item.role == "ceiling"]
    once = [item for of_kind in items for item in of_kind if item.role != "ceiling"]
    shown = _explained(once, explanations) | _ceiling(twice, explanations, judge)
    questions = {item: _question(*texts) for item, texts in shown.items()}
    questions |= _repetitions(items.pairs, questions, judging, rng)
    replies = judge.ask([question for question in questions.values() if question], "judgements")
    verdicts = {item: _verdict(question, replies) for item, question in questions.items()}
    if second is not None:
        different = _unique_questions(items.pairs, questions)
        replies = second.ask(list(different), "second judgements")
        for question, item in different.items():
            verdicts[replace(item, role="second")] = _verdict(question, replies)
    for item in verdicts.keys() - shown.keys():  # pairs that are judged again
        shown[item] = shown[replace(item, role="pair")]
    return [Judgement(item, *shown[item], verdict) for item, verdict in verdicts.items()]


def _items(
    matches: MatchSet,
    chains: bool,
    judging: Judging,
    explanations: Explanations,
    rng: np.random.Generator,
    tables: Tables,
) -> _Items:
    """Return the pairs of paths, the examples of features and the controls."""
    arms = list(judging.arms or matches.by_arm)
    pairs = table_items("pair", _rows_of_arms(tables, "paths", arms), "path")
    pairs = pairs or path_items(matches, chains, judging, explanations, rng)
    judged = {item.arm for item in pairs}
    for arm in arms:
        if arm not in judged:
            log.warning("no pair of %s is judged: no feature of its paths has a partner", arm)
    examples = table_items("example", _rows_of_arms(tables, "features", arms), "rank")
    return _Items(pairs, examples, control_items(matches, judging, explanations, rng))


def _rows_of_arms(tables: Tables, name: str, arms: list[str]) -> list[Row]:
    if name not in tables or tables[name].empty:
        return []
    return rows_of(tables[name][tables[name]["arm"].isin(arms)])


def _explained(items: Sequence[Item], explanations: Explanations) -> dict[Item, Both]:
    """Return the explanations of both features of each item."""
    keys = dict.fromkeys(key for item in items for key in (item.source, item.target))
    texts = {key: of_key[0] for key, of_key in explanations.of(list(keys)).items()}
    return {item: (texts.get(item.source), texts.get(item.target)) for item in items}


def _ceiling(items: Sequence[Item], explanations: Explanations, judge: Judge) -> dict[Item, Both]:
    """Return two explanations of each feature; the second is a paraphrase if there is only one.

    Items with a paraphrase get the role ``paraphrase``; a judge that cannot write has none.
    """
    texts = explanations.of([item.source for item in items], others=True)
    pairs: dict[Item, Both] = {}
    unpaired: dict[Item, Question] = {}
    for item in items:
        first, *further = texts.get(item.source, (None,))
        second = next((t for t in further if t and first and t.text != first.text), None)
        if first is not None and second is None:
            unpaired[item] = Question(PARAPHRASE, (first.text,))
        else:
            pairs[item] = first, second
    if unpaired and not judge.writes:
        message = "judge %s: the ceiling leaves out %d of %d features, which have one explanation "
        message += "only; this judge writes no paraphrases"
        log.info(message, judge.model, len(unpaired), len(items))
        return pairs
    replies = judge.ask(list(unpaired.values()), "paraphrases") if unpaired else {}
    written = {question: read_text(reply, "paraphrase") for question, reply in replies.items()}
    unreadable = [replies[question].content for question, text in written.items() if not text]
    if unreadable:
        message = "%s: %d of %d paraphrases cannot be read, so their features have no ceiling: %s"
        log.warning(message, judge.model, len(unreadable), len(written), shortened(unreadable[0]))
    for item, question in unpaired.items():
        text = written.get(question)
        second = Explanation(text, judge.model, PARAPHRASE.version) if text else None
        pairs[replace(item, role="paraphrase")] = texts[item.source][0], second
    return pairs


def _unique_questions(
    pairs: Sequence[Item], questions: Mapping[Item, Question | None]
) -> dict[Question, Item]:
    """Return each question once, with the first pair that needs it."""
    first: dict[Question, Item] = {}
    for item in pairs:
        question = questions[item]
        if question is not None:
            first.setdefault(question, item)
    return first


def _repetitions(
    pairs: Sequence[Item],
    questions: Mapping[Item, Question | None],
    judging: Judging,
    rng: np.random.Generator,
) -> dict[Item, Question | None]:
    """Return the pairs to judge again, with their roles.

    Pairs of equal texts are not swapped, since the question would be the same.
    """
    again: dict[Item, Question | None] = {}
    different = list(_unique_questions(pairs, questions).items())
    unequal = [(question, item) for question, item in different if len(set(question.texts)) > 1]
    for role, candidates, share in (
        ("swapped", unequal, judging.swapped), ("repeated", different, judging.repeated)
    ):  # fmt: skip
        for n in rng.permutation(len(candidates))[: round(share * len(candidates))]:
            question, item = candidates[n]
            if role == "swapped":
                question = replace(question, texts=question.texts[::-1], repeat=0)
            else:
                question = replace(question, repeat=1)
            again[replace(item, role=role)] = question
    return again


def _announce(
    items: _Items,
    judging: Judging,
    explanations: Explanations,
    judges: tuple[Judge, Judge | None],
) -> None:
    """Log the largest possible cost of the run, if explanations have two lines."""
    judge, second = judges
    line = "x" * 160
    n_again = round((judging.swapped + judging.repeated) * len(items.pairs))
    n_twice = sum(item.role == "ceiling" for item in items.controls) if judge.writes else 0
    n_first = sum(map(len, items)) + n_again
    judged, paraphrased = Question(JUDGE, (line, line)), Question(PARAPHRASE, (line,))
    cost = judge.estimate([judged] * n_first + [paraphrased] * n_twice)[2]
    twice = f" and {n_twice:,} paraphrases" if n_twice else ""
    parts = [f"at most {n_first:,} judgements{twice} by {judge.model}"]
    if explanations.asks_llm:
        features = {key for kind in items for item in kind for key in (item.source, item.target)}
        n_explained = len(features) + n_twice
        cost += judge.estimate([Question(EXPLAIN, (line * 10,))] * n_explained)[2]
        parts.append(f"at most {n_explained:,} explanations")
    if second is not None:
        cost += second.estimate([judged] * len(items.pairs))[2]
        parts.append(f"at most {len(items.pairs):,} judgements by {second.model}")
    price = f", ${cost:.2f}; stored answers cost nothing" if cost else ""
    log.info("judge: %s%s", ", ".join(parts), price)


def _question(source: Explanation | None, target: Explanation | None) -> Question | None:
    return Question(JUDGE, (source.text, target.text)) if source and target else None


def _verdict(question: Question | None, replies: Mapping[Question, Reply]) -> Verdict:
    if question is None:
        return Verdict("UNEXPLAINED")
    return read_verdict(replies[question]) if question in replies else Verdict("UNASKED")


def explainers(judgements: Sequence[Judgement]) -> dict[str, object]:
    """Return the number of explanations by explainer and method, and a hash of their tags."""
    read = {
        (key, explanation)
        for j in judgements
        for key, explanation in ((j.item.source, j.source), (j.item.target, j.target))
        if explanation is not None
    }
    counts = Counter(f"{text.explainer} {text.method}".strip() for _, text in read)
    return {**counts, "tags": hashed(sorted({explanation.tag for _, explanation in read}))}


def explain_tables(
    tables: Tables, explanations: Explanations, judgements: Sequence[Judgement]
) -> None:
    """Add both explanations, and the label if judged, to the tables ``features`` and ``paths``."""
    labels = {judgement.item: judgement.verdict.label for judgement in judgements}
    for name, role, path in (("features", "example", "rank"), ("paths", "pair", "path")):
        rows = tables.rows(name)
        items = table_items(role, rows, path)
        shown = _explained(items, explanations)
        explained = []
        for row, item in zip(rows, items, strict=True):
            for end, explanation in zip(("source", "target"), shown[item], strict=True):
                row[f"{end}_explanation"] = explanation.text if explanation else None
                row[f"{end}_explainer"] = explanation.explainer if explanation else None
            explained.append(row | ({"label": labels.get(item)} if judgements else {}))
        if explained:
            tables[name] = frame_of(explained)
