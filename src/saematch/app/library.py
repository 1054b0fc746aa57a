"""``saematch.run``: do a run from Python, for notebooks and scripts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from saematch.app.configuration import build, config_dir_of
from saematch.app.messages import MISTAKES, one_line
from saematch.core.errors import InputError
from saematch.core.results import Results
from saematch.runs.run_folders import remove_unused, run_folder


def run(settings: Sequence[str] = (), config_dir: str | os.PathLike[str] | None = None) -> Results:
    """Do a run with the settings of the command line, and return its results.

    Example: ``saematch.run(["+experiment=skip_layers", "dataset.n_texts=20", "run_id=a"])``. Like
    the command line, it writes ``outputs/<name>/<run_id>`` in the current folder, and continues a
    run that was interrupted. ``config_dir`` is a folder of your own presets. Raises ``InputError``
    for settings that are refused. The results name the run's ``folder``, which has the figures.
    """
    if not isinstance(settings, list | tuple) or not all(isinstance(s, str) for s in settings):
        raise InputError(f"settings={settings!r}: give a list of texts, such as ['layers=[2,3]']")
    for setting in settings:
        if "=" not in setting and not setting.startswith("~"):
            raise InputError(f"{setting!r} is not a setting: write NAME=VALUE")
    from saematch.runs.run import run as do_run

    folders = [] if config_dir is None else [Path(config_dir)]
    try:
        experiment, config = build(list(settings), config_dir_of(folders))
        folder = run_folder(config["name"], config["run_id"])
        try:
            results = do_run(experiment, config, folder)
        finally:
            remove_unused(folder)
    except InputError as error:
        raise error.with_traceback(None) from None
    except MISTAKES as error:
        raise InputError(one_line(error)) from None
    results.folder = folder
    return results
