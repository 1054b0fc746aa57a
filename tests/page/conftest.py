"""A browser, and pages of a synthetic run and of a run of the embedded model."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from browser import MissingBrowser, browser
from saematch.explorer.page import write_page
from synthetic_run import write_run

N_LAYERS, N_FEATURES, N_EXPLORED = 4, 256, 128


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    try:
        with browser(tmp_path_factory.mktemp("downloads")) as started:
            yield started
    except MissingBrowser as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def chrome(chromium):
    """The browser; at the end of the test its console has no message, and no host was asked."""
    chromium.media()
    chromium.messages(), chromium.requests()
    yield chromium
    assert chromium.messages() == []
    schemes = {address.split(":")[0] for address in chromium.requests()}
    assert schemes <= {"file", "data", "blob", "about"}


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A synthetic run with its page."""
    folder = write_run(tmp_path_factory.mktemp("synthetic"), N_LAYERS, N_FEATURES, N_EXPLORED)
    write_page(folder)
    return folder


@pytest.fixture
def page(run_folder):
    return run_folder / "explorer"


@pytest.fixture
def own_run(run_folder, tmp_path):
    """A copy of the run, without its page, that a test may change."""
    return Path(
        shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("explorer"))
    )


@pytest.fixture(scope="session")
def embedded_run(tmp_path_factory):
    """A run of the embedded model on few texts, with the page that it wrote."""
    folder = tmp_path_factory.mktemp("embedded")
    settings = [
        "layers=[3,4,5]", "arms=[mutual_nearest]", "evaluations=[verify,profile]",
        "evaluations.profile.n_features=64", "dataset.n_texts=4", "logger=none", "run_id=a",
        "show=true",
    ]  # fmt: skip
    command = [sys.executable, "-m", "saematch", *settings]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder / "outputs/match/a"
