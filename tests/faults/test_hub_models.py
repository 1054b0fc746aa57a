"""A language model from a hub, in a separate process, since the client reads its settings once."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import random_sae, tiny_overrides
from sae.sources.hub_server import COMMIT, LATER, RELEASES, Hub, files, serving
from sae.sources.test_hub import register
from saematch.core.files import write_json

SAES = RELEASES["gemma"][0]


def ran(model, folder, run):
    """Match two layers on a model of the hub; return the refusal, or the revision, and the log."""
    from saematch.app.configuration import build
    from saematch.run.run import run as do

    messages = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: messages.append(record.getMessage())
    log = logging.getLogger("saematch")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    own = [s for s in tiny_overrides(Path(os.environ["TINY"])) if not s.startswith("sae")]
    release = ["sae=saelens", "sae.release=gemma", 'sae.id_template="layer_{layer}"']
    tasks = ["evaluations=[co_activation]", "layers=[2,3]", "logger=none", "figures=[]"]
    settings = [*own, *release, *tasks, f"model.path={model}", "intervals.n_replicates=20"]
    try:
        results = do(*build(settings), folder / run)
    except ValueError as error:
        return {"refused": str(error), "messages": messages}
    finally:
        log.removeHandler(handler)
    return {"revision": results.provenance["model"]["revision"], "messages": messages}


def main(folder):
    folder = Path(folder)
    repos = files(random_sae(0), folder / "saelens")
    for repo, held in files(random_sae(2, layer=2), folder / "saelens_2", 2).items():
        repos[repo] |= held
    lm = {path.name: path.read_bytes() for path in Path(os.environ["TINY"], "lm").iterdir()}
    pickled = {name: c for name, c in lm.items() if not name.endswith(".safetensors")}
    code = json.loads(lm["config.json"]) | {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config"},
    }
    models = {
        "tiny/lm": lm,
        "tiny/pickled": pickled | {"pytorch_model.bin": b"pickle"},
        "tiny/code": lm | {"config.json": json.dumps(code).encode(), "own.py": b"1 / 0"},
    }
    hub = Hub({**repos, **models})
    hub.errors = {"tiny/gated": (403, "GatedRepo")}
    outcome = {"sizes": {"lm": len(lm["model.safetensors"])}}
    with serving(hub):
        os.environ["HF_ENDPOINT"] = hub.url
        register(pytest.MonkeyPatch())
        for name in ("gated", "pickled", "code"):
            outcome[name] = ran(f"tiny/{name}", folder, name)
        outcome["asked first"] = list(hub.asked)
        outcome["first"] = ran("tiny/lm", folder, "first")
        outcome["again"] = ran("tiny/lm", folder, "again")
        hub.commits["tiny/lm"] = LATER
        outcome["later"] = ran("tiny/lm", folder, "later")
    write_json(folder / "found.json", outcome)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("hub")
    code = "import sys; from faults.test_hub_models import main; main(sys.argv[1])"
    settings = {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "0", "TINY": str(tiny)}
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **settings},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


def test_B24_a_gated_model_is_refused_before_any_sae_is_fetched(outcome):
    assert "Accept its licence on its page of the Hugging Face hub" in outcome["gated"]["refused"]
    assert any("tiny/gated" in request for request in outcome["asked first"])
    assert not any(SAES in request for request in outcome["asked first"])


def test_B24_sizes_are_logged_once_and_not_for_cached_files(outcome):
    announced = [line for line in outcome["first"]["messages"] if line.endswith("to fetch")]
    size = outcome["sizes"]["lm"] / 2**20
    assert announced == [
        f"Language model tiny/lm: {size:.1f} MiB in 1 file to fetch",
        "SAEs: 0.0 MiB in 2 files to fetch",
    ]
    assert not [line for line in outcome["again"]["messages"] if "to fetch" in line]
    assert len([line for line in outcome["later"]["messages"] if "to fetch" in line]) == 1


def test_A1_the_revision_is_the_commit_that_was_read(outcome):
    assert [outcome[run]["revision"] for run in ("first", "again", "later")] == [
        COMMIT,
        COMMIT,
        LATER,
    ]


def test_B14_a_repository_of_pickled_weights_is_refused_before_they_are_fetched(outcome):
    assert "the only weights are pickled" in outcome["pickled"]["refused"]
    assert not any("pytorch_model.bin" in request for request in outcome["asked first"])


def test_C1_a_repository_with_its_own_code_is_refused_and_its_code_not_fetched(outcome):
    assert "it has its own code" in outcome["code"]["refused"]
    assert not any("own.py" in request for request in outcome["asked first"])
