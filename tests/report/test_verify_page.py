"""The results of runs with verify on a page of the docs."""

import pytest

from saematch.core.errors import InputError
from saematch.core.results import Results
from saematch.report.verify_page import write_results
from verify_tables import verify_tables

PAGE = "# Verify\n<!-- zoo: begin -->\nstale\n<!-- zoo: end -->\nrest\n"


def test_results_replace_the_text_between_the_marks(tmp_path):
    page, run = tmp_path / "page.md", tmp_path / "chain"
    page.write_text(PAGE)
    run.mkdir()
    Results("verify", {}, {}, tables=verify_tables([(3, 4)])).save(run / "results.json")
    write_results(page, "zoo", [run])
    content = page.read_text()
    assert content.startswith("# Verify\n<!-- zoo: begin -->\n**chain**: ")
    assert content.endswith("<!-- zoo: end -->\nrest\n") and "stale" not in content
    assert "switches off" in content and "| layers | folded k=1 | " in content
    write_results(page, "zoo", [run])
    assert page.read_text() == content


def test_a_page_without_marks_and_a_run_without_verify_are_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(InputError, match="has no lines <!-- zoo: begin -->"):
        write_results(page, "zoo", [])
    page.write_text(PAGE)
    Results("verify", {}, {}).save(tmp_path / "results.json")
    with pytest.raises(InputError, match="no results of the evaluation verify"):
        write_results(page, "zoo", [tmp_path])
    assert page.read_text() == PAGE
