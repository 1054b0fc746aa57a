"""The views of a page in a real browser, compared with the run's folder."""

import csv
import io
import re

import numpy as np
import pandas as pd
import pytest
from selenium.webdriver.common.keys import Keys

from hand_run import write_hand_run
from matches import permutation
from saematch.core.pairs import Pair, SaeKey
from saematch.explorer.links import partners, sources
from saematch.explorer.page import write_page
from saematch.explorer.paths import Node, Paths, nodes_of
from saematch.explorer.run_data import RunData
from saematch.explorer.start import verified_start

pytestmark = pytest.mark.page

ADDRESSES = [
    "#/", "#/tables", "#/tables/matches", "#/pair", "#/pair/default/1/default/2",
    "#/pair/default/0/default/1?arm=cosine&partners=all", "#/search?q=42", "#/search?q=music",
    "#/feature/default/0/7", "#/feature/default/2/9?arm=cosine",
]  # fmt: skip


def features_of(elements):
    """Return the layers and numbers of features in the addresses of links."""
    pattern = re.compile(r"#/feature/default/(\d+)/(\d+)")
    found = (pattern.search(element.get_attribute("href")) for element in elements)
    return [(int(match[1]), int(match[2])) for match in found]


def expected_path(run, arm, layer, feature):
    """Return the best path through a feature: the best sources, then the best partners."""
    path = [(layer, feature)]
    layers = [key.layer for key in run.saes]
    for start in range(layer, layers[-1]):
        match = run.match(arm, Pair.of_layers(start, start + 1))
        path.append((start + 1, int(partners(match).best[path[-1][1]])))
    for end in range(layer, layers[0], -1):
        match = run.match(arm, Pair.of_layers(end - 1, end))
        path.insert(0, (end - 1, int(sources(match).best[path[0][1]])))
    return [place for place in path if place[1] >= 0]


@pytest.mark.parametrize("address", ADDRESSES)
def test_opens_from_disk(chrome, page, address):
    chrome.open(page, address)
    assert chrome.heading != "Not found"
    chrome.driver.refresh()
    chrome.shown()
    assert chrome.heading


@pytest.mark.parametrize("layer,feature", [(0, 7), (2, 9), (3, 200)])
@pytest.mark.parametrize("arm", ["folded", "cosine"])
def test_path(chrome, page, run_folder, arm, layer, feature):
    run = RunData.open(run_folder)
    chrome.open(page, f"#/feature/default/{layer}/{feature}?arm={arm}")
    best = features_of(chrome.all("section[aria-label=Path] a.best"))
    assert best == expected_path(run, arm, layer, feature)
    alternatives = features_of(chrome.all("section[aria-label=Path] a.further"))
    if layer < 3:
        links = partners(run.match(arm, Pair.of_layers(layer, layer + 1)))
        ranked = links.others[slice(*links.starts[feature : feature + 2])].tolist()
        next_layer = [f for of_layer, f in alternatives if of_layer == layer + 1]
        assert next_layer == ranked[1:5]


def test_paths_of_several_suites_are_those_of_the_command(chrome, tmp_path):
    """A path on the page takes the same pairs as ``saematch features``."""
    a, b, n = "a", "b", 5
    pairs = [
        Pair(SaeKey(a, 1), SaeKey(b, 1)), Pair.of_layers(0, 2, a), Pair.of_layers(0, 1, a),
        Pair.of_layers(1, 2, a), Pair.of_layers(2, 0, a), Pair.of_layers(1, 2, b),
        Pair.of_layers(3, 1), Pair.of_layers(3, 2), Pair.of_layers(2, 1),
    ]  # fmt: skip
    matches = {("m", pair): permutation(seed, n) for seed, pair in enumerate(pairs)}
    folder = write_hand_run(tmp_path / "run", matches)
    write_page(folder)
    run = RunData.open(folder)
    paths = Paths(run, "m")
    for key in run.saes:
        start = Node(key, 2)
        chrome.open(folder / "explorer", f"#/feature/{key.suite}/{key.layer}/2")
        links = chrome.all("section[aria-label=Path] a.best")
        shown = [re.split("[#?]", link.get_attribute("href"))[1] for link in links]
        nodes = nodes_of(start, paths.path(start))
        assert shown == [f"/feature/{n.key.suite}/{n.key.layer}/{n.feature}" for n in nodes]


def test_a_damaged_address_is_not_found(chrome, page):
    chrome.open(page)
    chrome.go("#/feature/%")
    assert chrome.heading == "Not found"


def test_a_click_opens_the_partner(chrome, page, run_folder):
    run = RunData.open(run_folder)
    chrome.open(page, "#/feature/default/1/7?arm=folded")
    partner = int(partners(run.match("folded", Pair.of_layers(1, 2))).best[7])
    chrome.one(f"section[aria-label=Path] a[href*='default/2/{partner}']").click()
    chrome.until(lambda: chrome.heading == f"Feature {partner}, layer 2")
    assert "arm=folded" in chrome.address


def test_contexts_have_the_same_tokens(chrome, page, run_folder):
    run = RunData.open(run_folder)
    key = SaeKey("default", 1)
    frame, shared = run.contexts(key), run.partners(key)
    feature = int(frame["feature"].iloc[0])
    partner = int(partners(run.match("cosine", Pair.of_layers(1, 2))).best[feature])
    chrome.open(page, f"#/feature/default/1/{feature}?arm=cosine")
    contexts = chrome.all("section[aria-label=Contexts] ol:first-of-type > li")
    of_feature = frame[frame["feature"] == feature]
    assert len(contexts) == len(of_feature)
    for element, row in zip(contexts, of_feature.itertuples(), strict=True):
        own, other = lines(chrome, element)
        assert [text for text, _ in own] == [text for text, _ in other] == row.tokens.tolist()
        assert [shade for _, shade in own] == (row.values > 0).tolist()
        chosen = (shared["feature"] == feature) & (shared["rank"] == row.rank)
        chosen &= (shared["partner_layer"] == 2) & (shared["partner"] == partner)
        (values,) = shared[chosen]["values"]
        assert [shade for _, shade in other] == (values > 0).tolist()


def lines(chrome, context):
    """Return the lines of a context: for each token its text and whether it has a shade."""
    script = """return [...arguments[0].querySelectorAll(".tokens")].map((line) =>
        [...line.children].map((token) =>
            [token.textContent, token.style.backgroundColor !== ""]))"""
    return [[tuple(token) for token in line] for line in chrome.run(script, context)]


def test_search_by_number(chrome, page):
    chrome.open(page)
    chrome.one("header input").send_keys("2/42", Keys.ENTER)
    chrome.until(lambda: chrome.heading == "Search")
    assert features_of(chrome.all("main li a")) == [(2, 42)]
    chrome.go("#/search?q=42")
    assert features_of(chrome.all("main li a")) == [(layer, 42) for layer in range(4)]
    chrome.one("main li a").click()
    chrome.until(lambda: chrome.heading == "Feature 42, layer 0")


@pytest.mark.parametrize("column", ["explanation", "top_tokens"])
def test_search_by_word(chrome, page, run_folder, column):
    run = RunData.open(run_folder)
    frames = [run.features(key) for key in run.saes]
    word = re.findall(r"[A-Za-z]{4,}", frames[2][column][11])[0]
    hits = {
        (layer, feature)
        for layer, frame in enumerate(frames)
        for feature in frame.index
        if word.lower() in f"{frame.explanation[feature]}\n{frame.top_tokens[feature]}".lower()
    }
    chrome.open(page, f"#/search?q={word}")
    chrome.one("main table")
    assert (2, 11) in hits
    assert set(features_of(chrome.all("main tbody a"))) == hits or len(hits) > 100
    assert f"of {len(hits)} features" in chrome.text


def test_search_ranks_whole_words_then_texts_that_begin_with_them(chrome, own_run):
    path = own_run / "features/0.parquet"
    frame = pd.read_parquet(path)
    texts = ["a zebra", "zebras run", "the old zebra", "zebra", "no"]
    frame["explanation"] = texts + [None] * (len(frame) - len(texts))
    frame.to_parquet(path)
    chrome.open(write_page(own_run).parent, "#/search?q=zebra")
    chrome.one("main table")
    assert features_of(chrome.all("main tbody a")) == [(0, 3), (0, 0), (0, 2), (0, 1)]


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"))))


def selected(run, query, arm="folded"):
    """Return the links of the first pair that lie in a rectangle of density and off rate."""
    pair = Pair.of_layers(0, 1)
    density = rounded(run.features(pair.source)["density"])
    verified = run.verified(pair)
    verified = verified[verified["arm"] == arm].set_index("feature")
    off_rate = dict(zip(verified.index, rounded(verified["off_rate"]), strict=True))
    best = partners(run.match(arm, pair)).best
    low, high = float(query["x_from"]), float(query["x_to"])
    bottom, top = float(query["y_from"]), float(query["y_to"])
    return {
        (feature, int(best[feature]))
        for feature in off_rate
        if low <= density[feature] <= high and bottom <= off_rate[feature] <= top
    }


def rounded(values):
    """Return numbers as the page has them: three digits."""
    return np.float32([float(f"{value:.2e}") for value in values])


def query_of(address):
    return dict(part.split("=") for part in address.split("?")[1].split("&"))


def test_brush_selects_and_downloads(chrome, page, run_folder):
    run = RunData.open(run_folder)
    chrome.open(page, "#/pair/default/0/default/1?arm=folded&x=source.density&y=off_rate")
    drag(chrome, chrome.one(".chart .u-over"))
    chrome.until(lambda: "x_from" in chrome.address)
    expected = selected(run, query_of(chrome.address))
    assert 5 < len(expected) < 200
    assert chrome.one("[role=status]").text.startswith(f"{len(expected)} of 256 links selected")
    rows = rows_of(chrome.download(chrome.button("Download the selection").click))
    assert {(int(r["source_feature"]), int(r["target_feature"])) for r in rows} == expected
    off_rate = run.verified(Pair.of_layers(0, 1)).query("arm == 'folded'").set_index("feature")
    for row in rows:
        exact = off_rate["off_rate"][int(row["source_feature"])]
        assert float(row["off_rate"]) == pytest.approx(exact, rel=0.0051)


def drag(chrome, element):
    """Drag a rectangle over the middle of a chart."""
    from selenium.webdriver import ActionChains

    chrome.run("arguments[0].scrollIntoView({block: 'center'})", element)
    width, height = element.size["width"], element.size["height"]
    actions = ActionChains(chrome.driver).move_to_element_with_offset(
        element, -width // 2 + 20, -height // 5
    )
    actions.click_and_hold().move_by_offset(width // 3, height // 3)
    actions.move_by_offset(5, 5).release().perform()


def test_a_brush_has_an_address(chrome, page):
    chrome.open(page, "#/pair/default/0/default/1?arm=folded&x=source.density&y=off_rate")
    drag(chrome, chrome.one(".chart .u-over"))
    chrome.until(lambda: "x_from" in chrome.address)
    address, status = chrome.address, chrome.one("[role=status]").text
    chrome.driver.refresh()
    chrome.shown()
    assert (chrome.address, chrome.one("[role=status]").text) == (address, status)


@pytest.mark.parametrize(
    "address",
    [
        *ADDRESSES,
        "#/pair/default/0/default/1?arm=folded&x=source.density&y=off_rate&x_from=0.0002&x_to=0.001&y_from=0.2&y_to=0.7",
    ],
)
def test_an_address_shows_the_same_in_a_new_tab(chrome, page, address):
    chrome.open(page, address)
    text, final = chrome.text, chrome.driver.current_url
    chrome.driver.switch_to.new_window("tab")
    try:
        chrome.driver.get(final)
        chrome.shown()
        assert chrome.text == text
    finally:
        chrome.driver.close()
        chrome.driver.switch_to.window(chrome.driver.window_handles[0])


def test_back_returns_to_the_view_before(chrome, page):
    chrome.open(page, "#/feature/default/1/7")
    chrome.go("#/feature/default/2/9")
    chrome.driver.back()
    chrome.until(lambda: chrome.heading == "Feature 7, layer 1")


def test_a_table_downloads(chrome, page, run_folder):
    frame = RunData.open(run_folder).results.tables["matches"]
    chrome.open(page, "#/tables/matches")
    rows = rows_of(chrome.download(chrome.button("Download").click))
    assert [row["arm"] for row in rows] == frame["arm"].tolist()
    assert [float(row["matching_score"]) for row in rows] == frame["matching_score"].tolist()


def test_a_path_downloads(chrome, page, run_folder):
    chrome.open(page, "#/feature/default/1/7?arm=folded")
    chrome.one("section[aria-label=Path] details summary").click()
    rows = rows_of(chrome.download(chrome.button("Download").click))
    path = expected_path(RunData.open(run_folder), "folded", 1, 7)
    assert [(int(row["layer"]), int(row["feature"])) for row in rows] == path


def test_keys_reach_and_open_a_partner(chrome, page, run_folder):
    path = expected_path(RunData.open(run_folder), "folded", 1, 7)
    chrome.open(page, "#/feature/default/1/7?arm=folded")
    chrome.run("document.activeElement.blur()")
    for _ in range(60):
        chrome.driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = chrome.driver.switch_to.active_element
        if "best" in (
            focused.get_attribute("class") or ""
        ) and f"default/2/{path[2][1]}" in focused.get_attribute("href"):
            break
    focused.send_keys(Keys.ENTER)
    chrome.until(lambda: chrome.heading == f"Feature {path[2][1]}, layer 2")
    chrome.one("body").send_keys("j")
    chrome.until(lambda: chrome.heading == f"Feature {path[2][1] + 1}, layer 2")


def test_every_control_has_a_name(chrome, page):
    for address in ADDRESSES:
        chrome.open(page, address)
        nameless = chrome.run("""
            return [...document.querySelectorAll("input, select, button, a, [role=img]")]
                .filter((e) => !e.hidden && !e.labels?.length)
                .filter((e) => !e.textContent.trim() && !e.getAttribute("aria-label"))
                .map((e) => e.outerHTML)""")
        assert nameless == []


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_narrow_screen_scrolls_only_down(chrome, page, address):
    chrome.media(width=390)
    chrome.open(page, address)
    assert chrome.run("return document.documentElement.scrollWidth") <= 390


def test_dark_scheme(chrome, page):
    shade = "return getComputedStyle(document.body).backgroundColor.match(/\\\\d+/g).map(Number)"
    chrome.open(page, "#/feature/default/1/7")
    assert min(chrome.run(shade.replace("\\\\", "\\"))) > 200
    chrome.media(dark=True)
    assert max(chrome.run(shade.replace("\\\\", "\\"))) < 60


@pytest.mark.parametrize("address,message", [
    ("#/feature/default/9/1", "This run has no layer 9"),
    ("#/feature/default/1/256", "features 0 to 255"),
    ("#/feature/default/1/-1", "features 0 to 255"),
    ("#/feature/default/1/1?arm=none", "This run has no arm none"),
    ("#/pair/default/0/default/2", "did not match"),
    ("#/tables/none", "no table none"),
    ("#/none", "no address"),
])  # fmt: skip
def test_addresses_that_do_not_exist(chrome, page, address, message):
    chrome.open(page, address)
    assert chrome.heading == "Not found"
    assert message in chrome.one("[role=alert]").text


def test_a_damaged_file(chrome, own_run):
    page = write_page(own_run).parent
    (folder,) = page.glob("data-*")
    path = folder / "features/1/0.js"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    chrome.open(page, "#/feature/default/1/7")
    assert f"{folder.name}/features/1/0.js is damaged" in chrome.text
    path.unlink()
    chrome.open(page, "#/feature/default/1/7")
    assert f"{folder.name}/features/1/0.js is missing" in chrome.text
    for message in chrome.messages():
        assert "features/1/0.js" in message, "the browser's own words"


def test_the_embedded_model(chrome, embedded_run):
    """From the first view to a feature's path, contexts and finding in three clicks."""
    run = RunData.open(embedded_run)
    chrome.open(embedded_run / "explorer")
    chrome.one("main ul li a[href*='#/feature/']").click()
    chrome.until(lambda: chrome.heading.startswith("Feature "))
    chrome.shown()
    feature, layer = map(int, re.findall(r"\d+", chrome.heading))
    best = features_of(chrome.all("section[aria-label=Path] a.best"))
    assert best == expected_path(run, "mutual_nearest", layer, feature)
    assert len(chrome.all("section[aria-label=Contexts] li")) > 0
    assert re.search("passes|fails|too few events|Not tested", chrome.text)
    chrome.one("section[aria-label=Path] a.best:not([aria-current])").click()
    chrome.until(lambda: f"Feature {feature}, layer {layer}" != chrome.heading)
    chrome.shown()


def test_first_features_pass_verify(chrome, page, run_folder):
    start = verified_start(RunData.open(run_folder))
    chrome.open(page)
    offered = features_of(chrome.all("main ul li a[href*='#/feature/']"))
    assert offered == [(key.layer, feature) for key, feature, _ in start]
    chrome.one("main ul li a[href*='#/feature/']").click()
    chrome.until(lambda: "carries on in layer" in chrome.text)


def test_the_run_lists_layers_as_a_range(chrome, page):
    chrome.open(page)
    assert "layers 0 to 3, 256 features each" in chrome.text


def test_shares_are_percentages(chrome, page, run_folder):
    run = RunData.open(run_folder)
    density = rounded(run.features(SaeKey("default", 1))["density"])[7]
    chrome.open(page, "#/feature/default/1/7?arm=folded")
    facts = chrome.one("section[aria-label='Numbers of this feature']").text
    shown = float(re.search(r"^Density\n([\d.e-]+)%$", facts, re.MULTILINE)[1])
    assert shown == pytest.approx(100 * density, rel=0.005)


def test_the_mean_off_rate_is_a_percentage_with_its_interval(chrome, embedded_run):
    chrome.open(embedded_run / "explorer", "#/feature/default/3/7")
    text = chrome.one("section[aria-label='Partners under each arm']").text
    share = r"[\d.e-]+%"
    assert re.search(rf"off rate {share} \[{share}, {share}\], of random targets {share}", text)


def test_partners_after_the_third_are_folded(chrome, page):
    chrome.open(page, "#/feature/default/1/7?arm=cosine")
    ranks = chrome.all("section[aria-label='Partners under each arm'] tbody tr")
    assert [row.is_displayed() for row in ranks] == [rank < 3 for rank in range(len(ranks))]
    chrome.button(f"Show all {len(ranks)} ranks").click()
    assert all(row.is_displayed() for row in ranks)


def test_only_charts_of_several_series_have_legends(chrome, page):
    chrome.open(page, "#/feature/default/1/7?arm=folded")
    charts = {
        chart.find_element("tag name", "h3").text: chart.find_elements("css selector", ".u-legend")
        for chart in chrome.all(".small-charts > div")
    }
    assert charts
    for title, legends in charts.items():
        assert len(legends) == ("," in title)
        assert not any("Value" in legend.text for legend in legends)
