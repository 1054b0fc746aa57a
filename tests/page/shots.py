"""Screenshots of a run's page for the documentation.

``python tests/page/shots.py RUN FOLDER`` writes them; ``make explorer-shots`` calls it.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image

from browser import Browser, browser
from saematch.core.pairs import SaeKey
from saematch.explorer.page import write_page
from saematch.explorer.run_data import RunData

WIDTH, HEIGHT, NARROW = 1200, 900, 390
N_COLOURS = 64
MOST_BYTES = 150_000
MOST_DENSITY = 0.02
"""Largest density of the feature to show, if there is such a feature."""


def save(chrome: Browser, path: Path) -> None:
    """Write a screenshot as PNG in few colours; raises ``ValueError`` if it is too large."""
    picture = Image.open(io.BytesIO(chrome.driver.get_screenshot_as_png())).convert("RGB")
    picture.quantize(N_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, over {MOST_BYTES}")


def show(chrome: Browser, page: Path, address: str, selector: str | None = None) -> None:
    """Open an address and scroll an element to the top."""
    chrome.open(page, address)
    if selector is not None:
        chrome.run("arguments[0].scrollIntoView()", chrome.one(selector))


def subject(run: RunData) -> tuple[SaeKey, int, str]:
    """Return a feature to show: one that is followed and has contexts, with an explanation."""
    key = run.pairs[len(run.pairs) // 2].source
    frame, contexts = run.features(key), run.contexts(key)
    candidates = list(frame.index) if contexts is None else contexts["feature"].unique().tolist()
    tested = run.verified(next(pair for pair in run.pairs if pair.source == key))
    if tested is not None:
        passing = set(tested[tested["finding"] == "passes"]["feature"])
        candidates = [feature for feature in candidates if feature in passing] or candidates
    if "density" in frame:
        rare = [feature for feature in candidates if frame["density"][feature] < MOST_DENSITY]
        candidates = rare or candidates
    text = frame["explanation"] if "explanation" in frame else frame.get("top_tokens")
    feature = max(candidates, key=lambda f: 0 if text is None else len(text[f] or ""))
    return key, int(feature), run.arms[0]


def shoot(chrome: Browser, run: RunData, page: Path, folder: Path) -> None:
    """Write all screenshots."""
    key, feature, arm = subject(run)
    pair = next(pair for pair in run.pairs if pair.source == key)
    of_feature = f"#/feature/{key.suite}/{key.layer}/{feature}?arm={arm}"
    of_pair = "#/pair/" + "/".join(map(str, (*pair.source, *pair.target)))
    of_pair += f"?arm={arm}&x=source.density&x_log=1&y=off_rate&y_from=0.5&y_to=1"
    views = {
        "run": ("#/", None), "search": ("#/search?q=import", None), "feature": (of_feature, None),
        "contexts": (of_feature, "section[aria-label=Contexts]"), "pair": (of_pair, ".chart"),
    }  # fmt: skip
    chrome.media(width=WIDTH, height=HEIGHT)
    for name, view in views.items():
        show(chrome, page, *view)
        save(chrome, folder / f"{name}.png")
    chrome.media(width=WIDTH, height=HEIGHT, dark=True)
    show(chrome, page, of_feature)
    save(chrome, folder / "dark.png")
    chrome.media(width=NARROW)
    show(chrome, page, of_feature)
    save(chrome, folder / "narrow.png")


def main() -> None:
    """Write the screenshots of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    page = write_page(options.run).parent
    with tempfile.TemporaryDirectory() as downloads, browser(Path(downloads)) as chrome:
        shoot(chrome, RunData.open(options.run), page, options.folder)


if __name__ == "__main__":
    main()
