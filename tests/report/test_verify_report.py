"""What a run shows of the evaluation ``verify``: figures, terminal and flat metrics."""

import json

import numpy as np
import pytest

from saematch.core.match import Match
from saematch.core.results import Results
from saematch.core.tables import Tables
from saematch.report.figures import FIGURES, draw_figures
from saematch.report.summary import history_by_layer, mean_metrics
from saematch.report.terminal import print_results
from saematch.report.verify import sentences, verify_lines
from saematch.runs.tracking import Outcome, WandbLogging
from verify_tables import N_CHANGES, verify_tables

NAMES = ("effect", "partners", "changes")
SEVEN = [(layer, layer + 1) for layer in range(7)]


def printed(tables, tmp_path, capsys):
    print_results(Results("verify", {}, {}, tables=tables), tmp_path)
    return capsys.readouterr().out.splitlines()


def only(tables, **values):
    """Return the tables with the rows of ``verify`` that have the values in a list."""
    frame = tables["verify"]
    for name, kept in values.items():
        frame = frame[frame[name].isin(kept)]
    return Tables({**tables, "verify": frame}, tables.columns.values())


def lines_of(axis):
    return {line.get_label(): line for line in axis.lines}


# Sentence


def test_the_sentence_of_one_pair():
    (sentence,) = sentences(verify_tables([(4, 5)]))
    assert sentence == (
        "Removing a feature of layer 4 switches off its folded partner in 23 % of the events, a "
        "random feature in 1 %, one of its five best cosine partners in 42 %, and some feature in "
        "81 %."
    )


def test_the_sentence_of_several_pairs_has_their_means():
    """The off rates fall by .01 from pair to pair, so the mean of seven is lower by .03."""
    (sentence,) = sentences(verify_tables(SEVEN))
    assert sentence == (
        "Over 7 pairs, removing a feature switches off its folded partner in 20 % of the events, a "
        "random feature in 1 %, one of its five best cosine partners in 39 %, and some feature in "
        "78 %."
    )


def test_each_suite_has_its_sentence():
    default, wide = verify_tables([(4, 5)]), verify_tables([(2, 3)], "wide")
    rows = [*default.rows("verify"), *wide.rows("verify")]
    first, second = sentences(Tables.of({"verify": rows}))
    assert first.startswith("Removing a feature of layer 4 switches off")
    assert second.startswith("Removing a feature of layer 2 of wide switches off")


def test_the_sentence_has_only_what_was_measured():
    tables = verify_tables([(4, 5)])
    (sentence,) = sentences(only(tables, arm=["folded", "random"]))
    assert sentence == (
        "Removing a feature of layer 4 switches off its folded partner in 23 % of the events, and "
        "a random feature in 1 %."
    )
    (sentence,) = sentences(only(tables, arm=["written_share"], k=[1, 2, 20]))
    assert "one of its twenty best written_share partners in 63 %" in sentence
    assert list(sentences(only(tables, arm=["learned"]))) == []


@pytest.mark.parametrize(("share", "text"), [(0.0, "0 %"), (0.004, "under 1 %"), (0.006, "1 %")])
def test_a_small_share_is_not_zero(share, text):
    tables = verify_tables([(4, 5)])
    tables["verify"]["off_rate_random"] = share
    (sentence,) = sentences(tables)
    assert f"a random feature in {text}, " in sentence


# Terminal


def test_the_terminal_shows_rates_with_intervals_in_80_columns(tmp_path, capsys):
    lines = printed(verify_tables(SEVEN), tmp_path, capsys)
    tables = [line.split()[1:] for line in lines if line.startswith("0→1 ")]
    off_rates, effects = [*tables[0], *tables[1]], [*tables[2], *tables[3]]
    assert off_rates == [".23±.02", ".24±.02", ".55±.02", ".28±.02", ".63±.02",
                         ".01±.02", ".01", ".10±.02", ".26±.02", ".81±.02"]  # fmt: skip
    assert effects[0] == ".25±.02"  # the effect is 1.1 times the off rate
    assert effects[6] == ".01"
    start = next(n for n, line in enumerate(lines) if line.startswith("Verify, "))
    end = next(n for n, line in enumerate(lines) if line.startswith("Verify, ") and n > start)
    headings = " ".join(lines[start + 1 : end]).split()
    assert headings.count("k=20") == 2
    assert max(map(len, lines[start:end])) <= 80


def test_an_arm_that_did_not_match_a_pair_has_a_dash(tmp_path, capsys):
    tables = verify_tables([(0, 1), (1, 2)])
    frame = tables["verify"]
    tables["verify"] = frame[~((frame["arm"] == "folded") & (frame["source_layer"] == 1))]
    lines = printed(tables, tmp_path, capsys)  # two pairs fit 80 columns with a row for each arm
    rows = [line.split() for line in lines]
    assert ["folded", "k=1", ".23±.02", "–"] in rows
    assert ["random", "target", ".01", "–"] in rows  # the random targets of the arm's partners
    assert ["cosine", "k=1", ".24±.02", ".23±.02"] in rows


def test_the_terminal_counts_events_and_findings():
    lines = list(verify_lines(verify_tables(SEVEN)))
    assert lines[0].startswith("Over 7 pairs, ")
    assert lines[1] == (
        "events of verify, over 7 pairs: 18,900 by feature, 7,000 by token; of 7,168 features 700 "
        "are below the floor and 21 have no event"
    )
    assert lines[2] == "chosen features, folded: 14 pass, 7 fail, 7 with too few events"
    assert len(lines) == 2 + 4
    assert list(verify_lines(verify_tables([(4, 5)])))[1].startswith(
        "events of verify, layers 4→5: 2,700 by feature"
    )


# Figures


def test_figures_are_drawn_from_their_tables(tmp_path):
    assert list(draw_figures(verify_tables(SEVEN), NAMES, tmp_path)) == list(NAMES)
    assert list(draw_figures(verify_tables([(4, 5)]), NAMES, tmp_path)) == list(NAMES)


def test_without_a_table_there_is_no_figure_and_nothing_in_the_terminal(tmp_path, capsys):
    tables = verify_tables(SEVEN)
    del tables["verify_changes"]
    assert FIGURES["changes"](tables) is None
    del tables["verify"]
    assert FIGURES["effect"](tables) is None
    assert FIGURES["partners"](tables) is None
    assert not [line for line in printed(tables, tmp_path, capsys) if line.startswith("Verify")]
    alone = only(verify_tables(SEVEN), sampling=["token"])
    assert FIGURES["effect"](alone) is None


def test_the_figure_of_effects_has_arms_controls_and_ceilings():
    axes = FIGURES["effect"](verify_tables(SEVEN)).axes
    assert [axis.get_title() for axis in axes] == ["effect", "off rate"]
    lines = lines_of(axes[1])
    assert list(lines) == ["folded", "cosine", "written_share", "random", "random target",
                           "near miss", "learned partner", "best in hindsight"]  # fmt: skip
    assert lines["folded"].get_ydata() == pytest.approx([0.23 - 0.01 * n for n in range(7)])
    assert lines["cosine"].get_ydata()[0] == pytest.approx(0.24)  # of one partner
    assert lines["random target"].get_ydata() == pytest.approx([0.01] * 7)
    assert lines["best in hindsight"].get_ydata()[-1] == pytest.approx(0.75)
    assert lines_of(axes[0])["folded"].get_ydata()[0] == pytest.approx(0.253)


def test_a_run_of_several_suites_shows_the_default_one():
    default, wide = verify_tables([(4, 5), (5, 6)]), verify_tables([(2, 3)], "wide")
    tables = Tables.of(
        {name: [*default.rows(name), *wide.rows(name)] for name in default}, wide.columns.values()
    )
    labels = [t.get_text() for t in FIGURES["effect"](tables).axes[0].get_xticklabels()]
    assert labels == ["4→5", "5→6"]
    assert FIGURES["effect"](wide) is not None


def test_the_figure_of_partners_has_a_panel_a_pair_or_the_mean():
    axes = FIGURES["partners"](verify_tables([(4, 5), (5, 6)])).axes
    assert [axis.get_title() for axis in axes] == ["layers 4→5", "layers 5→6"]
    lines = lines_of(axes[1])
    assert list(lines["cosine"].get_xdata()) == [1, 2, 5, 20]
    assert lines["cosine"].get_ydata() == pytest.approx([0.23, 0.31, 0.41, 0.54])
    (mean,) = FIGURES["partners"](verify_tables(SEVEN)).axes
    assert mean.get_title() == "mean over 7 pairs"
    assert lines_of(mean)["cosine"].get_ydata() == pytest.approx([0.21, 0.29, 0.39, 0.52])
    assert lines_of(mean)["best in hindsight"].get_ydata() == pytest.approx([0.78] * 2)
    random = [line for line in mean.lines if line.get_color() == lines["cosine"].get_color()][1]
    assert random.get_linestyle() == "--"
    assert random.get_ydata() == pytest.approx([0.01, 0.02, 0.05, 0.2])


def test_the_figure_of_changes_has_the_mean_slope_and_counts_the_events_outside():
    tables = verify_tables([(4, 5), (5, 6)])
    axis = FIGURES["changes"](tables).axes[0]
    points, identity, fitted = axis.lines
    assert len(points.get_xdata()) == 2 * N_CHANGES
    assert identity.get_xdata() == pytest.approx(identity.get_ydata())
    assert fitted.get_ydata() / fitted.get_xdata() == pytest.approx([0.55] * 2)
    low, high = axis.get_xlim()
    values = np.stack([points.get_xdata(), points.get_ydata()])
    outside = ((values < low) | (values > high)).any(axis=0).sum()
    assert axis.get_title() == f"folded\nslope 0.55, {outside} of 120 events are outside"
    del tables["verify_direct"]
    assert len(FIGURES["changes"](tables).axes[0].lines) == 2


# Flat metrics and W&B


def test_the_effect_of_an_arm_is_a_flat_metric():
    tables = verify_tables(SEVEN)
    metrics = mean_metrics(tables)
    assert metrics["effect/folded"] == pytest.approx(1.1 * 0.20)
    assert metrics["off_rate/written_share"] == pytest.approx(0.25)
    assert metrics["effect_over_random/folded"] == pytest.approx(1.1 * 0.19)
    assert not [name for name in metrics if "hindsight" in name]
    assert history_by_layer(tables)[7]["effect/folded"] == pytest.approx(1.1 * 0.17)


def test_all_tables_are_mirrored(tmp_path, monkeypatch):
    import torch

    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    matches = tmp_path / "matches"
    Match.from_columns(torch.tensor([1, 0]), 2).save(matches / "folded" / "4-5.safetensors")
    tables = verify_tables([(4, 5)])
    results = Results("verify", {}, {}, tables=tables, metrics=mean_metrics(tables))
    tracker = WandbLogging(offline=True).start("verify", tmp_path, {})
    tracker.finish(Outcome(results, {}, matches))
    for name, frame in tables.items():
        (file,) = tmp_path.glob(
            f"wandb/offline-run-*/files/media/table/tables/{name}_[0-9]*.table.json"
        )
        content = json.loads(file.read_text())
        assert content["columns"] == list(frame)
        assert len(content["data"]) == len(frame)
