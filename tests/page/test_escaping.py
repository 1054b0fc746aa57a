"""Scripts in tokens, explanations, names and cells stay text in a real browser."""

import html
import json

import pandas as pd
import pytest

from saematch.explorer.page import write_page
from saematch.explorer.run_data import CONTEXTS, FEATURES, PROFILE

pytestmark = pytest.mark.page

SCRIPTS = [
    "<img src=x onerror='window.hacked = 1'>",
    "</script><script>window.hacked = 1</script>",
    '"><svg onload="window.hacked = 1">',
    "\u2028window.hacked = 1\u2029//",
    "javascript:window.hacked=1",
    "'-window.hacked=1-'",
    "<a href='javascript:window.hacked=1'>x</a>",
]
HOSTILE = " ".join(SCRIPTS)


@pytest.fixture
def hostile_page(own_run):
    """The page of a run with scripts in all texts that come from outside."""
    for folder, columns in [
        (FEATURES, ["explanation", "explainer"]), (PROFILE, ["top_tokens"]),
        (CONTEXTS, ["dataset"]),
    ]:  # fmt: skip
        for path in (own_run / folder).glob("*.parquet"):
            frame = pd.read_parquet(path).assign(**dict.fromkeys(columns, HOSTILE))
            if "tokens" in frame:
                n = len(frame["tokens"][0])
                frame["tokens"] = [(SCRIPTS * n)[:n] for _ in range(len(frame))]
            frame.to_parquet(path, index=False)
    path = own_run / "results.json"
    results = json.loads(path.read_text())
    results["name"] = HOSTILE
    results["config"] = {HOSTILE: {HOSTILE: HOSTILE}, "evaluations": {HOSTILE: {}}}
    results["provenance"] = {
        "texts": {HOSTILE: {"n_texts": 1, "path": HOSTILE}}, "models": {HOSTILE: HOSTILE},
        "saes": {"1": {"neuronpedia_id": HOSTILE}},
    }  # fmt: skip
    results["metrics"] = {HOSTILE: 1.0, "matching_score": 0.5}
    for row in results["tables"]["matches"]:
        row[HOSTILE] = HOSTILE
    pair = {
        "source_suite": "default",
        "source_layer": 1,
        "target_suite": "default",
        "target_layer": 2,
    }
    judged = {
        **pair, "source_feature": 7, "target_feature": 7, "arm": "folded", "role": "pair",
        "label": HOSTILE, "source_explanation": HOSTILE, "target_explanation": HOSTILE,
        "evaluation": HOSTILE,
    }  # fmt: skip
    results["tables"]["judgements"] = [judged]
    results["tables"][HOSTILE.replace("/", "")[:80]] = [{HOSTILE: HOSTILE}]
    path.write_text(json.dumps(results))
    (own_run / "saematch.log").write_text(f"2026-01-01 00:00:00,000 WARNING a: {SCRIPTS[0]}\n")
    return write_page(own_run).parent


ADDRESSES = [
    "#/", "#/tables", "#/tables/matches", "#/tables/judgements", "#/pair/default/1/default/2",
    "#/feature/default/1/7", "#/feature/default/1/7?arm=cosine", "#/search?q=img",
    f"#/{SCRIPTS[0].replace(' ', '%20')}", f"#/search?q={SCRIPTS[2].replace(' ', '%20')}",
    f"#/tables/{SCRIPTS[2].replace(' ', '%20').replace('/', '%2F')}",
    "#/feature/default/1/%3Cimg%20src%3Dx%3E",
]  # fmt: skip


def test_scripts_stay_text(chrome, hostile_page):
    for address in ADDRESSES:
        chrome.open(hostile_page, address)
        chrome.run("for (const e of document.querySelectorAll('details')) e.open = true")
        chrome.shown()
        assert chrome.run("return window.hacked") is None
        assert chrome.all("main img, main script, svg[onload], a[href^='javascript']") == []
    feature = pd.read_parquet(hostile_page.parent / CONTEXTS / "1.parquet")["feature"][0]
    chrome.open(hostile_page, f"#/feature/default/1/{feature}")
    assert SCRIPTS[0] in chrome.text
    token = chrome.run("return document.querySelector('.tokens span').innerHTML")
    assert token == html.escape(SCRIPTS[0], quote=False)
