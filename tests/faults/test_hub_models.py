"""A language model from a hub."""

import json
import logging

import pytest

from conftest import random_sae, tiny_overrides
from sae.sources.hub_server import COMMIT, LATER, RELEASES, Hub, connect, files, serving
from sae.sources.test_hub import register

SAES = RELEASES["gemma"][0]


def ran(model, folder, tiny):
    """Match two layers on a model of the hub; return the refusal, or the revision, and the log."""
    from saematch.app.configuration import build
    from saematch.runs.run import run as do

    messages = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: messages.append(record.getMessage())
    log = logging.getLogger("saematch")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    own = [s for s in tiny_overrides(tiny) if not s.startswith("sae")]
    release = ["sae=saelens", "sae.release=gemma", 'sae.id_template="layer_{layer}"']
    tasks = ["evaluations=[co_activation]", "layers=[2,3]", "logger=none", "figures=[]"]
    settings = [*own, *release, *tasks, f"model.path={model}", "intervals.n_replicates=20"]
    try:
        results = do(*build(settings), folder)
    except ValueError as error:
        return {"refused": str(error), "messages": messages}
    finally:
        log.removeHandler(handler)
    return {"revision": results.provenance["model"]["revision"], "messages": messages}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("hub")
    repos = files(random_sae(0), folder / "saelens")
    for repo, held in files(random_sae(2, layer=2), folder / "saelens_2", 2).items():
        repos[repo] |= held
    lm = {path.name: path.read_bytes() for path in (tiny / "lm").iterdir()}
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
    with serving(hub), pytest.MonkeyPatch.context() as patch:
        connect(patch, hub, folder / "hub")
        register(patch)
        for name in ("gated", "pickled", "code"):
            outcome[name] = ran(f"tiny/{name}", folder / name, tiny)
        outcome["asked first"] = list(hub.asked)
        outcome["first"] = ran("tiny/lm", folder / "first", tiny)
        outcome["again"] = ran("tiny/lm", folder / "again", tiny)
        hub.commits["tiny/lm"] = LATER
        outcome["later"] = ran("tiny/lm", folder / "later", tiny)
    return outcome


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
