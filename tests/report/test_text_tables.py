import io

from rich.console import Console

from saematch.report.text_tables import TextTable, broken, parts, print_table

PAIRS = "[[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6]]"


def printed(table, width=80):
    printer = Console(width=width, record=True, file=io.StringIO())
    print_table(table, printer)
    return printer.export_text().splitlines()


def test_a_split_table_repeats_all_row_heads_and_loses_no_heading():
    metrics = ["matching\nscore", "explained\nvariance", "change in\nloss, nats"]
    rows = [[f"run_{n}", "folded", PAIRS, str(n), *["0.123\n[0.111, 0.135]"] * 3] for n in range(8)]
    table = TextTable("", ["pairing.\npairs", "layers", *metrics], rows, ("run", "arm"))
    assert len(list(parts(table, 80))) == 2
    lines = printed(table)
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("run_7") for line in lines) == 2
    assert sum(line.count("[0.111, 0.135]") for line in lines) == 8 * 3
    text = "\n".join(lines)
    for heading in ("pairing.", "pairs", "layers", "matching", "variance", "loss, nats"):
        assert heading in text
    assert "[[0, 1], [1, 2], [2, 3]," in text, "a long cell is folded, but not to a few letters"


def test_a_table_with_few_rows_is_turned_only_if_that_fits():
    wide = TextTable("", [f"heading {n}" for n in range(12)], [["0→1", *["0.5"] * 12]])
    assert [column.header for column in next(parts(wide, 80)).columns] == ["", "0→1"]
    assert len(list(parts(wide, 400))) == 1
    assert len(next(parts(wide, 400)).columns) == 13


def test_no_cell_is_folded_and_no_room_is_wasted_at_any_width():
    table = TextTable("", ["folded"] * 6, [["0→1", *["2.879 (90%)"] * 6]] * 7)
    for width in range(40, 100):
        lines = printed(table, width)
        assert sum(line.count("2.879 (90%)") for line in lines) == 6 * 7
        assert max(map(len, lines)) <= width
        if width >= 8 + 6 * 13 - 1:
            assert len(list(parts(table, width))) == 1


def test_text_of_a_table_is_no_markup():
    (line,) = [
        line for line in printed(TextTable("", ["x"], [["[a]", "[bold]"]])) if "bold" in line
    ]
    assert line.split() == ["[a]", "[bold]"]


def test_a_long_name_is_broken_at_underscores():
    assert broken("encoder_decoder_cosine") == "encoder_\ndecoder_\ncosine"
    assert broken("as_trained") == "as_trained"


def test_a_hyphenated_heading_is_whole_in_a_turned_table():
    headings = ["para-\nphrase", "standard-\nised", "equal\nindex", "as_\ntrained", *"abcdefgh"]
    lines = printed(TextTable("", headings, [["0→1", *["0.5000000"] * 12]]))
    rows = [line.split("0.5")[0].strip() for line in lines if "0.5" in line]
    assert rows[:4] == ["paraphrase", "standardised", "equal index", "as_trained"]
