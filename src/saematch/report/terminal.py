"""Output of a run at its end."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from saematch.core.columns import Column
from saematch.core.pairs import DEFAULT, NO_ARM, PAIR_COLUMNS, pair_of
from saematch.core.progress import ONLY_IN_FILE
from saematch.core.results import Results
from saematch.core.safe_text import shortened
from saematch.core.tables import Tables, rows_of
from saematch.judge.verdicts import UNSCORED
from saematch.report.cells import number, pair_label, pairs_of, texts_of
from saematch.report.frames import (
    datasets_of,
    has,
    numbers,
    skipped_layers,
    table,
    unique,
    values_of,
    where,
    with_metric,
)
from saematch.report.leaderboard import winner_lines
from saematch.report.metrics import other_metrics
from saematch.report.summary import optimal_to
from saematch.report.text_tables import TextTable, broken, console, print_table
from saematch.report.verify import verify_lines, verify_tables

log = logging.getLogger(__name__)

HEADINGS = {
    "permute": "",
    "permute_raw": "raw scale",
    "reconstruct_current": "target\nSAE",
    "reconstruct_previous": "source\nSAE",
    "drop": "drop",
    "increment": "increment",
    "increment_free": "free\nincrement",
}
"""Headings of strategies."""
CONTROLS = {"random": "random\npairs", "identity": "equal\nindex", "ceiling": "same\ntwice",
            "paraphrase": "para-\nphrase"}  # fmt: skip
"""Headings of a judge's controls."""
AGAIN_LABELS = {"swapped": "in the other order", "repeated": "asked again",
                "second": "by the second judge"}  # fmt: skip
"""Names of the ways in which pairs are judged again."""
MANY_UNLABELLED = 0.05
"""Share of judgements without a label above which the output reports them."""
FILES = {"results.json": "results", "figures": "figures", "matches": "matches", "saes": "SAEs",
         "saematch.log": "log"}  # fmt: skip
"""Files and folders of a run, and what they contain."""
EXPLAINER_HEADINGS = {"same": "{arm}", "different": "{arm}\n2 explainers"}
"""Headings of the table ``likeness``, by whether one explainer explained both features."""
MATCH_HEADINGS = {"recall": "recall", "matching_score": "score", "mse_W_dec": "MSE W_dec"}
"""Headings of metrics in the table of matches; it shows the first two metrics with values."""
SAE_HEADINGS = {
    "explained_variance": "explained\nvariance",
    "explained_variance_standardised": "standard-\nised",
    "l0": "L0",
    "dead_features": "dead",
    "threshold_mean": "mean\nthreshold",
    "threshold_spread": "threshold\nspread",
}


def print_results(results: Results, folder: Path) -> None:
    """Print the run's tables and the paths of its files; the run's log gets the same text."""
    printer = console(record=True)

    def say(line: str) -> None:
        printer.print(line, highlight=False, soft_wrap=True, markup=False)

    tables = results.tables
    for text_table in _printed(tables):
        print_table(text_table, printer)
    lines = ("", *_live_recall(tables), *_unlabelled(tables), *_judged_again(tables),
             *verify_lines(tables), *winner_lines(tables), *_other_metrics(tables),
             *_refused(table(tables, "refused")), *optimality(tables), "",
             *_files(results, folder))  # fmt: skip
    for line in lines:
        say(line)
    log.info("%s", printer.export_text(), extra=ONLY_IN_FILE)


def _files(results: Results, folder: Path) -> Iterator[str]:
    """Yield a line for each file or folder of the run, and lines on what to do with them."""
    for name, content in FILES.items():
        if (folder / name).exists():
            yield f"{content + ':':<13}{folder / name}"
    if "hidden_states" in results.provenance:
        yield f"hidden states: {results.provenance['hidden_states']['folder']}"
    if "saes" in results.tables:
        yield f"match the SAEs: sae=disk 'sae.path=\"{folder}/saes/layer_{{layer}}\"'"
    elif "matches" in results.tables:
        yield f"follow features in a browser: {_page(results, folder)}"


def _page(results: Results, folder: Path) -> str:
    """Return the address of the run's page, or the command that writes the page."""
    if results.config.get("show"):
        return (folder / "explorer/index.html").absolute().as_uri()
    return f"saematch show {shlex.quote(str(folder))}"


def _refused(refused: pd.DataFrame) -> Iterator[str]:
    """Yield a line for each reason to leave out pairs, with the pairs."""
    for evaluation, arm, reason in unique(refused, "evaluation", "arm", "reason"):
        pairs = pairs_of(where(refused, evaluation=evaluation, arm=arm, reason=reason))
        by_arm = "" if arm is None else f" by {arm}"
        yield f"{evaluation}{by_arm} leaves out {', '.join(map(pair_label, pairs))}: {reason}"


def optimality(tables: Tables) -> Iterator[str]:
    """Yield a line for each arm on how good its matches are at least, and where their value is."""
    for name, gap in optimal_to(tables).items():
        arm = name.partition("/")[2]
        matches = where(tables["matches"], arm=arm)
        line = f"every match of {arm} is proven optimal" + (f" to {gap:.1e}" if gap else "")
        if has(matches, "certain"):
            least = matches["certain"].astype(float).min()
            least = math.floor(1000 * least) / 10  # a lower bound is not rounded up
            line += f"; at least {least:g}% of its pairs are in every optimal match"
        if has(matches, "n_90"):
            counted = matches[matches["n_90"] > 0]
            share = (counted["n_90"] / counted["n_entries"]).astype(float).min()
            line += f"; 90% of the value over chance is in as few as {share:.0%} of its pairs"
        yield line


def _printed(tables: Tables) -> Iterator[TextTable]:
    """Yield the tables to print."""
    if "matches" not in tables:
        if "saes" in tables:
            yield _sae_table(tables)
        return
    matches = _match_table(tables)
    if matches.headings:
        yield matches
    scores = table(tables, "judge_scores")
    if len(scores):
        yield _judge_table(tables, scores)
    likeness = table(tables, "likeness")
    if len(likeness):
        yield _likeness_table(likeness)
    strategies = skipped_layers(tables)
    if len(strategies):
        datasets = ", ".join(datasets_of(strategies))
        title = f"Explained variance of the replaced hidden state, mean over {datasets}"
        yield _strategy_table(strategies, "explained_variance", title)
        title = f"Change in loss, nats a token, mean over {datasets}"
        yield _strategy_table(strategies, "delta_loss", title)
    yield from verify_tables(tables)


def _match_table(tables: Tables) -> TextTable:
    matches = tables["matches"]
    metrics = [metric for metric in MATCH_HEADINGS if has(matches, metric)][:2]
    pairs = pairs_of(matches)
    headings, columns = [], []
    for metric in metrics:
        for arm in values_of(matches, "arm"):
            of_arm = {pair_of(row): row for row in rows_of(where(matches, arm=arm))}
            values = [of_arm.get(pair, {}).get(metric) for pair in pairs]
            headings.append(f"{MATCH_HEADINGS[metric]}\n{broken(arm)}")
            columns.append(texts_of(tables.column(metric), values))
    labels = ", ".join(tables.column(metric).label for metric in metrics)
    rows = [list(row) for row in zip(map(pair_label, pairs), *columns, strict=True)]
    return TextTable(f"Matches: {labels}", headings, rows)


def _live_recall(tables: Tables) -> Iterator[str]:
    """Yield a line on the recall over features that fired, where recall is known."""
    recall = where(table(tables, "means"), metric="recall_live")
    for suites in values_of(recall, "suites"):
        label = "" if suites == DEFAULT else f" of {suites}"
        arms = _by_arm(where(recall, suites=suites), tables.column("recall_live"), "value")
        yield f"recall over features{label} that fired, mean over pairs: {arms}"


def _other_metrics(tables: Tables) -> Iterator[str]:
    """Yield a line for each logged metric of evaluations of other packages."""
    for name, column in other_metrics(tables):
        values = with_metric(tables[name], column.name)
        if "arm" in values:
            means = values.groupby("arm", sort=False, as_index=False)[column.name].mean()
            yield f"{column.with_unit}, mean over pairs: {_by_arm(means, column, column.name)}"
        else:
            (text,) = texts_of(column, [numbers(values, column.name).mean()])
            yield f"{column.with_unit}, mean: {text}"


def _by_arm(frame: pd.DataFrame, column: Column, values: str) -> str:
    texts = texts_of(column, numbers(frame, values).tolist())
    return ", ".join(f"{arm} {text}" for arm, text in zip(frame["arm"], texts, strict=True))


def _judged_again(tables: Tables) -> Iterator[str]:
    """Yield a line for each way in which a judge's pairs were judged again."""
    for row in rows_of(table(tables, "judge_agreement")):
        n_pairs, n_unscored = (int(str(row[name])) for name in ("n_pairs", "n_unscored"))
        agreement = _percent(row["agreement"])
        line = f"judge, {AGAIN_LABELS[str(row['compared'])]}: the same label for {agreement} of "
        line += f"{n_pairs} pairs, kappa {number(row['kappa'])}"
        if row["compared"] == "swapped":
            line += f", change in score {number(row['score_difference'])}"
        yield line + (f"; {n_unscored} pairs without a label" if n_unscored else "")


def _unlabelled(tables: Tables) -> Iterator[str]:
    """Yield a line if many judgements have no label, with their reasons and an answer."""
    judgements = table(tables, "judgements")
    without = judgements[judgements["label"].isin(UNSCORED)] if len(judgements) else judgements
    if len(without) <= MANY_UNLABELLED * len(judgements):
        return
    counts = ", ".join(f"{n} {label}" for label, n in without["label"].value_counts().items())
    answers = where(without, label="UNPARSED")["evaluation"]
    example = f", such as {shortened(str(answers.iloc[0]))}" if len(answers) else ""
    yield (
        f"judge: {len(without)} of {len(judgements)} judgements have no label and count in no "
        f"score: {counts}{example}"
    )


def _sae_table(tables: Tables) -> TextTable:
    rows = [
        [str(row["layer"]), *(_plain(row[name]) for name in SAE_HEADINGS)]
        for row in rows_of(tables["saes"])
    ]
    title = "SAEs, measured on tokens that they were not trained on"
    return TextTable(title, list(SAE_HEADINGS.values()), rows)


def _judge_table(tables: Tables, scores: pd.DataFrame) -> TextTable:
    columns = [("pair", arm, broken(arm)) for arm in values_of(where(scores, role="pair"), "arm")]
    roles = values_of(scores, "role")
    columns += [(role, NO_ARM, heading) for role, heading in CONTROLS.items() if role in roles]
    label = tables.column("judge_score").label.replace("judge", "Judge", 1)
    rows = []
    for pair in pairs_of(where(scores, role="pair")):
        of_pair = rows_of(where(scores, **pair.columns()))
        cells = {(row["role"], row["arm"]): row for row in of_pair}
        of_columns = [cells.get((role, arm), {}) for role, arm, _ in columns]
        rows.append([pair_label(pair), *(number(row.get("judge_score")) for row in of_columns)])
        if pair.source.layer is None:
            rows.append(["SAME", *(_percent(row.get("same_share")) for row in of_columns)])
    title = f"{label}: 1 different to 3 the same; SAME: its share"
    return TextTable(title, [heading for _, _, heading in columns], rows)


def _percent(share: object) -> str:
    return "–" if share is None else f"{float(str(share)):.0%}"


def _likeness_table(likeness: pd.DataFrame) -> TextTable:
    columns = unique(likeness, "explainers", "arm")
    columns.sort(key=lambda column: column[0], reverse=True)  # same, then different
    headings = [EXPLAINER_HEADINGS[kind].format(arm=broken(arm)) for kind, arm in columns]
    title = "Likeness of the explanations of matched features (of random pairs)"
    rows = []
    for pair in pairs_of(likeness):
        cells = {
            (row["explainers"], row["arm"]):
            f"{number(row['likeness'])} ({number(row['likeness_random'])})"
            for row in rows_of(where(likeness, **pair.columns()))
        }  # fmt: skip
        rows.append([pair_label(pair), *(cells.get(column, "–") for column in columns)])
    return TextTable(title, headings, rows)


def _strategy_table(strategies: pd.DataFrame, metric: str, title: str) -> TextTable:
    partial = strategies[strategies["quantile"].notna()]
    if len(partial):  # show the first arm with partial matches only
        strategies = where(partial, arm=partial["arm"].iloc[0])
    keys = ["arm", "strategy", "quantile"]
    cells = unique(strategies, *keys)
    headings = []
    for arm, strategy, quantile in cells:
        name = HEADINGS.get(strategy, strategy)
        heading = name if arm == NO_ARM else f"{broken(arm)}\n{name}"
        share = "" if quantile is None else f"q={quantile:g}"
        headings.append(f"{heading}{share}".strip())
    filled = strategies.assign(**{metric: numbers(strategies, metric)})
    by_cell = filled.groupby([*PAIR_COLUMNS, *keys], sort=False, dropna=False, as_index=False)
    means = by_cell[metric].mean()
    rows = []
    for pair in pairs_of(strategies):
        of_pair = rows_of(where(means, **pair.columns()))
        values = {tuple(row[key] for key in keys): row[metric] for row in of_pair}
        rows.append([pair_label(pair), *(number(values.get(cell)) for cell in cells)])
    return TextTable(title, headings, rows)


def _plain(value: object) -> str:
    return str(value) if isinstance(value, int) else number(value)
