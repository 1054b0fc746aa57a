"""Size and speed of the page of a large run, in Chromium.

``python benchmarks/page.py FOLDER`` writes the page of the run in FOLDER (``make bench-page`` makes
a synthetic one of 26 layers x 16,384 features), prints each figure with its bound, and ends with an
error if a figure exceeds its bound.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import Browser, browser
from saematch.explorer.page import write_page

N_TIMES = 7
MEGABYTE = 1e6


def sizes(page: Path) -> dict[str, tuple[float, float]]:
    """Return sizes in MB, with their bounds."""
    (folder,) = page.glob("data-*")
    files = {path: path.stat().st_size for path in folder.rglob("*.js")}
    contexts = sum(size for path, size in files.items() if folder / "contexts" in path.parents)
    return {
        "index and links, MB": ((sum(files.values()) - contexts) / MEGABYTE, 60),
        "contexts and histograms, MB": (contexts / MEGABYTE, 60),
        "largest file, MB": (max(files.values()) / MEGABYTE, 4),
    }


def mark(chrome: Browser, name: str) -> float:
    """Return the time of the last mark of this name, in milliseconds since the page was opened."""
    script = "return performance.getEntriesByName(arguments[0]).at(-1)?.startTime"
    return chrome.until(lambda: chrome.run(script, name))


def first_view(chrome: Browser, page: Path) -> float:
    """Return the milliseconds from the navigation to the first view."""
    chrome.open(page)
    return mark(chrome, "first view")


def feature(chrome: Browser, page: Path, layer: int, number: int) -> tuple[float, float]:
    """Return the milliseconds to a feature's first and complete view, with files not yet loaded."""
    chrome.open(page)
    time.sleep(1)  # the page loads the best links in the background after its first view
    chrome.go(f"#/feature/default/{layer}/{number}")
    start = mark(chrome, "feature opened")
    return mark(chrome, "feature shown") - start, mark(chrome, "feature complete") - start


def speed(page: Path) -> dict[str, tuple[float, float]]:
    """Return medians in milliseconds, with their bounds."""
    with tempfile.TemporaryDirectory() as downloads, browser(Path(downloads)) as chrome:
        script = "addEventListener('shown', () => performance.mark('first view'), {once: true})"
        chrome.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        views = [first_view(chrome, page) for _ in range(N_TIMES)]
        places = [(3 * i, 2000 * i + 77) for i in range(N_TIMES)]
        shown, complete = zip(*(feature(chrome, page, *place) for place in places), strict=True)
        chrome.go("#/search?q=negation")
        search = float(
            chrome.run("return document.querySelector('[data-milliseconds]').dataset.milliseconds")
        )
    return {
        "first view, ms": (statistics.median(views), 2000),
        "feature shown, ms": (statistics.median(shown), 100),
        "feature complete, ms": (statistics.median(complete), 1000),
        "search of all labels, ms": (search, 1000),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    start = time.process_time()
    page = write_page(folder).parent
    figures = {"writing the page, s of one core": (time.process_time() - start, 60)}
    figures |= sizes(page) | speed(page)
    for name, (value, bound) in figures.items():
        print(f"{name:34} {value:9.1f}  bound {bound:6}{'' if value <= bound else '  EXCEEDED'}")
    sys.exit(any(value > bound for value, bound in figures.values()))


if __name__ == "__main__":
    main()
