"""Ask a judge about features, and put what it says beside what it read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from saematch.chat.answers import read_text
from saematch.chat.questions import Judge, Question, Reply
from saematch.core.files import hashed
from saematch.core.tables import Row, Tables, frame_of
from saematch.explain.explanations import Explanation, Explanations
from saematch.explain.prompts import EXPLAIN
from saematch.judge.design import Item, Judging, control_items, path_items, table_items
from saematch.judge.prompts import JUDGE, PARAPHRASE
from saematch.judge.verdicts import Verdict, read_verdict
from saematch.matching.matches import MatchSet

log = logging.getLogger(__name__)

Both = tuple[Explanation | None, Explanation | None]
"""What is said of the source and of the target feature."""


@dataclass(frozen=True)
class Judgement:
    """One item, what was read and what came of it."""

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
            "source_explainer": self.source and self.source.explainer,
            "target_explainer": self.target and self.target.explainer,
            "source_explanation": self.source and self.source.text,
            "target_explanation": self.target and self.target.text,
        }


def judge_matches(
    matches: MatchSet,
    chains: bool,
    judging: Judging,
    explanations: Explanations,
    judge: Judge,
    second: Judge | None,
    tables: Tables,
) -> list[Judgement]:
    """Judge the paths of every arm, the examples and paths of the run's tables, and the controls.

    Raises ``AskingError`` where asking has to stop; what was answered is kept.
    """
    rng = np.random.default_rng(judging.seed)
    steps, examples = (
        [row for row in tables.rows(name) if row["arm"] in (judging.arms or matches.by_arm)]
        for name in ("paths", "features")
    )
    pairs = table_items("pair", steps, "path")
    pairs = pairs or path_items(matches, chains, judging, explanations, rng)
    judged = {item.arm for item in pairs}
    for arm in judging.arms or matches.by_arm:
        if arm not in judged:
            log.warning("no pair of %s is judged: no feature of its paths has a partner", arm)
    examples = table_items("example", examples, "rank")
    controls = control_items(matches, judging, explanations, rng)
    _announce(pairs, examples, controls, judging, explanations, judge, second)
    twice = [item for item in controls if item.role == "ceiling"]
    items = [item for item in (*pairs, *examples, *controls) if item.role != "ceiling"]
    shown = _shown(items, explanations) | _ceiling(twice, explanations, judge)
    questions = {item: _question(*both) for item, both in shown.items()}
    questions |= _again(pairs, questions, judging, rng)
    replies = judge.ask([q for q in questions.values() if q], "judgements")
    verdicts = {item: _verdict(question, replies) for item, question in questions.items()}
    if second is not None:
        different = _different(pairs, questions)
        theirs = second.ask(list(different), "second judgements")
        for question, item in different.items():
            verdicts[replace(item, role="second")] = _verdict(question, theirs)
    for item in verdicts.keys() - shown.keys():  # what is judged once more
        shown[item] = shown[replace(item, role="pair")]
    return [Judgement(item, *shown[item], verdict) for item, verdict in verdicts.items()]


def _shown(items: Sequence[Item], explanations: Explanations) -> dict[Item, Both]:
    """Return the explanations of both features of each item."""
    wanted = dict.fromkeys(key for item in items for key in (item.source, item.target))
    said = {key: some[0] for key, some in explanations.of(list(wanted)).items()}
    return {item: (said.get(item.source), said.get(item.target)) for item in items}


def _ceiling(items: Sequence[Item], explanations: Explanations, judge: Judge) -> dict[Item, Both]:
    """Return two explanations of each feature: from the source, else its own and a paraphrase.

    Where it is a paraphrase the item's role says so; a judge that cannot write leaves it out.
    """
    known = explanations.of([item.source for item in items], others=True)
    pairs: dict[Item, Both] = {}
    alone: dict[Item, Question] = {}
    for item in items:
        some = known.get(item.source, (None,))
        other = next(
            (one for one in some[1:] if one and some[0] and one.text != some[0].text), None
        )
        if some[0] is not None and other is None:
            alone[item] = Question(PARAPHRASE, (some[0].text,))
        else:
            pairs[item] = some[0], other
    if alone and not judge.writes:
        said = "%s writes no paraphrases: %d features with one explanation have no ceiling"
        log.info(said, judge.model, len(alone))
        return pairs
    replies = judge.ask(list(alone.values()), "paraphrases") if alone else {}
    for item, question in alone.items():
        text = read_text(replies[question], "paraphrase") if question in replies else None
        other = Explanation(text, judge.model, PARAPHRASE.version) if text else None
        pairs[replace(item, role="paraphrase")] = known[item.source][0], other
    return pairs


def _different(
    pairs: Sequence[Item], questions: Mapping[Item, Question | None]
) -> dict[Question, Item]:
    """Return each question once, with the first pair that asks it."""
    first: dict[Question, Item] = {}
    for item in pairs:
        question = questions[item]
        if question is not None:
            first.setdefault(question, item)
    return first


def _again(
    pairs: Sequence[Item],
    questions: Mapping[Item, Question | None],
    judging: Judging,
    rng: np.random.Generator,
) -> dict[Item, Question | None]:
    """Return the pairs to judge once more, as items of their own.

    Two equal texts are not swapped: that would be the same question.
    """
    again: dict[Item, Question | None] = {}
    every = list(_different(pairs, questions).items())
    unequal = [(question, item) for question, item in every if len(set(question.texts)) > 1]
    for role, some, share in (
        ("swapped", unequal, judging.swapped), ("repeated", every, judging.repeated)
    ):  # fmt: skip
        for n in rng.permutation(len(some))[: round(share * len(some))]:
            question, item = some[n]
            swapped = role == "swapped"
            texts = question.texts[::-1] if swapped else question.texts
            asked = replace(question, texts=texts, repeat=0 if swapped else 1)
            again[replace(item, role=role)] = asked
    return again


def _announce(
    pairs: Sequence[Item],
    examples: Sequence[Item],
    controls: Sequence[Item],
    judging: Judging,
    explanations: Explanations,
    judge: Judge,
    second: Judge | None,
) -> None:
    """Say at the start what everything together may cost, at two lines of text an explanation."""
    line = "x" * 160
    n_again = round((judging.swapped + judging.repeated) * len(pairs))
    n_twice = sum(item.role == "ceiling" for item in controls) if judge.writes else 0
    n_first = len(pairs) + len(examples) + len(controls) + n_again
    judged, paraphrased = Question(JUDGE, (line, line)), Question(PARAPHRASE, (line,))
    cost = judge.estimate([judged] * n_first + [paraphrased] * n_twice)[2]
    said = f"at most {n_first} judgements and {n_twice} paraphrases by {judge.model}"
    if explanations.asks_llm:
        n_features = len(
            {key for i in (*pairs, *examples, *controls) for key in (i.source, i.target)}
        )
        cost += judge.estimate([Question(EXPLAIN, (line * 10,))] * (n_features + n_twice))[2]
        said += f", at most {n_features + n_twice} explanations"
    if second is not None:
        cost += second.estimate([judged] * len(pairs))[2]
        said += f", at most {len(pairs)} judgements by {second.model}"
    log.info("%s%s; what is known already costs nothing", said, f", ${cost:.2f}" if cost else "")


def _question(one: Explanation | None, other: Explanation | None) -> Question | None:
    return Question(JUDGE, (one.text, other.text)) if one and other else None


def _verdict(question: Question | None, replies: Mapping[Question, Reply]) -> Verdict:
    if question is None:
        return Verdict("UNEXPLAINED")
    return read_verdict(replies[question]) if question in replies else Verdict("UNASKED")


def explainers(judgements: Sequence[Judgement]) -> dict[str, object]:
    """Return how many explanations were read by explainer and method, and a hash of their tags."""
    read = {
        (key, said)
        for j in judgements
        for key, said in ((j.item.source, j.source), (j.item.target, j.target))
        if said is not None
    }
    counts = Counter(f"{said.explainer} {said.method}".strip() for _, said in read)
    return {**counts, "tags": hashed(sorted({said.tag for _, said in read}))}


def explain_tables(
    tables: Tables, explanations: Explanations, judgements: Sequence[Judgement]
) -> None:
    """Add to each row of ``features`` and ``paths`` both explanations, and the label if judged."""
    labels = {judgement.item: judgement.verdict.label for judgement in judgements}
    for name, role, path in (("features", "example", "rank"), ("paths", "pair", "path")):
        rows = tables.rows(name)
        items = table_items(role, rows, path)
        shown = _shown(items, explanations)
        for row, item in zip(rows, items, strict=True):
            for end, said in zip(("source", "target"), shown[item], strict=True):
                row[f"{end}_explanation"] = said and said.text
                row[f"{end}_explainer"] = said and said.explainer
            if judgements:
                row["label"] = labels.get(item)
        if rows:
            tables[name] = frame_of(rows)
