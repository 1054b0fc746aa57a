"""The folder of a page."""

import json
import re

import pytest

import data_files
from saematch.explorer.page import WEB, write_page
from synthetic_run import write_run


@pytest.fixture
def run_folder(tmp_path):
    return write_run(tmp_path / "run", 2, 16, 4)


def data_of(index):
    """Return the only folder of data files of a page."""
    (folder,) = index.parent.glob("data*")
    return folder


def test_a_page_has_the_files_that_it_loads(run_folder):
    index = write_page(run_folder)
    text = index.read_text()
    sources = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert len(sources) > 10
    assert all((index.parent / source).is_file() for source in sources)
    scripts = {f"app/{path.name}" for path in (WEB / "app").glob("*.js")}
    assert scripts <= set(sources), "a script that no page loads"


def test_nothing_comes_from_a_host(run_folder):
    index = write_page(run_folder)
    assert "default-src 'none'" in index.read_text()
    own = [*(index.parent / "app").glob("*.js"), *index.parent.glob("*.css"), index]
    allowed = ("http://www.w3.org/2000/svg", "https://www.neuronpedia.org/")
    for path in own:
        for address in re.findall(r"https?://[^\s\"'`]*", path.read_text()):
            assert address.startswith(allowed), path


def test_no_markup_is_parsed(run_folder):
    unsafe = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    )
    for path in (WEB / "app").glob("*.js"):
        assert not unsafe.search(path.read_text()), path


def test_only_warnings_of_the_log(run_folder):
    time = "2026-01-01 00:00:00,000"
    lines = [
        f"{time} INFO saematch: a",
        f"{time} WARNING saematch: b\u2028",
        "  more",
        f"{time} ERROR x: c",
    ]
    (run_folder / "saematch.log").write_text("\n".join(lines), encoding="utf-8")
    index = write_page(run_folder)
    facts = data_files.read(data_of(index), "run")
    assert facts["log"] == [f"{time} WARNING saematch: b", f"{time} ERROR x: c"]


def test_figures_are_copied(run_folder):
    (run_folder / "figures").mkdir()
    (run_folder / "figures/own.png").write_bytes(b"png")
    index = write_page(run_folder)
    assert (index.parent / "figures/own.png").read_bytes() == b"png"
    assert [f["name"] for f in data_files.read(data_of(index), "run")["figures"]] == ["own"]


def test_control_characters_are_visible(run_folder):
    path = run_folder / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps({**results, "name": "a\u202eb\ud800"}))
    facts = data_files.read(data_of(write_page(run_folder)), "run")
    assert facts["name"] == r"a\u202eb\ud800"


def test_an_earlier_page_is_replaced(run_folder):
    index = write_page(run_folder)
    earlier = data_of(index)
    (earlier / "old.js").write_text("")
    assert write_page(run_folder) == index
    assert data_of(index) == earlier and not (earlier / "old.js").exists()


def test_other_results_have_other_addresses_so_that_an_open_page_cannot_mix_them(run_folder):
    earlier = data_of(write_page(run_folder))
    path = run_folder / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": "other"}))
    index = write_page(run_folder)
    assert data_of(index) != earlier and not earlier.exists()
    assert f'<body data-folder="{data_of(index).name}">' in index.read_text()
