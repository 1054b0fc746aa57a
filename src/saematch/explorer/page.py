"""The page of a run: a folder that a browser opens from disk, without a server or a network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from saematch.core.errors import InputError
from saematch.core.files import content_hash, replacing_folder
from saematch.core.safe_text import visible
from saematch.explorer.data import write_data
from saematch.explorer.run_data import RunData
from saematch.report.captions import CAPTIONS

WEB = Path(__file__).with_name("web")
"""Folder with the page itself."""
PAGE = "explorer"
"""Default name of a page's folder in a run's folder."""
DATA = 'data-folder="data"'
"""Attribute in ``index.html`` that names the folder of data files. Each result of a run has its own
name of this folder, so that a tab with an earlier page cannot read files of a new one."""
SCHEMA = 1
"""Version of the data files; the page refuses others."""
N_WARNINGS = 500
"""Largest number of lines of the run's log on a page."""
_WARNING = re.compile(r"\S+ \S+ (WARNING|ERROR|CRITICAL) ")


def write_page(folder: Path, to: Path | None = None) -> Path:
    """Write the page of the run in ``folder`` and return its first file, ``index.html``.

    ``to`` is the folder of the page, which an earlier page may have; by default ``explorer`` in the
    run's folder. Raises ``InputError`` for a run that has no page (``RunData.open``), and for a
    ``to`` that has other files, which the page would replace.
    """
    run = RunData.open(folder)
    place = (folder / PAGE if to is None else to).resolve()
    _check_place(place)
    with replacing_folder(place) as part:
        shutil.copytree(WEB, part, dirs_exist_ok=True)
        figures = _copy_figures(folder, part / "figures")
        data = f"data-{content_hash([folder / 'results.json']).removeprefix('sha256:')}"
        write_data(run, part / data, _facts(run, figures))
        index = part / "index.html"
        index.write_text(index.read_text("utf-8").replace(DATA, f'data-folder="{data}"'), "utf-8")
    return place / "index.html"


def _check_place(place: Path) -> None:
    """Refuse a file, and a folder that is neither empty nor a page."""
    if place.is_dir():
        is_page = (place / "index.html").is_file() and any(place.glob("data-*/run.js"))
        if not is_page and any(place.iterdir()):
            raise InputError(
                f"{place} has other files, which a page would replace: choose another --to"
            )
    elif place.exists():
        raise InputError(f"{place} is a file: choose a folder for the page with --to")


def _copy_figures(folder: Path, to: Path) -> list[dict[str, str]]:
    """Copy the figures of a run; return the name and the caption of each."""
    paths = sorted((folder / "figures").glob("*.png"))
    for path in paths:
        to.mkdir(exist_ok=True)
        shutil.copy2(path, to / path.name)
    return [{"name": path.stem, "caption": CAPTIONS.get(path.stem, path.stem)} for path in paths]


def _facts(run: RunData, figures: list[dict[str, str]]) -> dict[str, Any]:
    results = run.results
    return visible({
        "schema": SCHEMA,
        "name": results.name,
        "run_id": run.folder.name,
        "config": results.config,
        "provenance": results.provenance,
        "metrics": results.metrics,
        "columns": {
            name: {"label": column.label, "unit": column.unit, "better": column.better,
                   "meaning": column.meaning}
            for name, column in results.tables.columns.items()
        },
        "figures": figures,
        "log": _warnings(run.folder / "saematch.log"),
    })  # fmt: skip


def _warnings(log: Path) -> list[str]:
    """Return the last lines of a log with warnings and errors; a line begins with its time."""
    lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
    return [line for line in lines if _WARNING.match(line)][-N_WARNINGS:]
