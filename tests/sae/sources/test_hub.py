"""SAEs from the hub's cache and from a hub."""

import gc
import io
import math
import sys
import time
import warnings
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import enable_progress_bars

from conftest import D_MODEL, random_sae, tiny_overrides
from sae.sources.hub_server import (
    COMMIT,
    LATER,
    NORM,
    RELEASES,
    THETA,
    Hub,
    at_layer,
    connect,
    files,
    serving,
    write_cache,
)
from saematch.sae.sources import registry
from saematch.sae.sources.hub import log_download
from saematch.sae.sources.registry import RegisteredSae, Release

SAE = random_sae(0)
EARLIER = random_sae(2, layer=2)
X = torch.randn(40, D_MODEL, generator=torch.Generator().manual_seed(1))
ERRORS = {"gone": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "ill": (500, "")}
CUTS = {"hasty": 1, "hopeless": 1000}


GEMMA = RELEASES["gemma"][0]


def faulty_repo(name):
    """SAELens reads the model's size and the site from the name."""
    return f"tiny/{name}-2b-pt-res"


def register(patch):
    """Make the tiny releases known to SAELens and to saematch, until the patch ends."""
    from sae_lens.loading.pretrained_saes_directory import (
        PretrainedSAELookup,
        get_pretrained_saes_directory,
    )

    faulty = {
        name: (f"tiny/{name}-2b-pt-res", *RELEASES["gemma"][1:])
        for name in [*ERRORS, *CUTS, "torn"]
    }
    for name, (repo, loader, path, overrides) in {**RELEASES, **faulty}.items():
        saes = {f"layer_{n}": at_layer(path, n) for n in (2, 3, 4)}
        labels = {**dict.fromkeys(saes), "layer_3": "tiny/3-tinyscope"}
        scale = dict.fromkeys(saes, D_MODEL**0.5 / NORM)
        entry = PretrainedSAELookup(
            name, repo, "tiny", loader, saes, {}, {}, labels, scale,
            {**overrides, "model_name": "tiny"},
        )  # fmt: skip
        patch.setitem(get_pretrained_saes_directory(), name, entry)
        ours = {i: RegisteredSae(path, 10.0, labels[i]) for i, path in saes.items()}
        release = Release(name, repo, "tiny", loader or "sae_lens", ours)
        patch.setitem(registry.releases(), name, release)


def outcome(name, layer=3):
    """Load an SAE; return its properties or the refusal."""
    from saematch.sae.sources.hub import fetch

    try:
        fetched = fetch(registry.release(name), f"layer_{layer}")
    except ValueError as error:
        return {"refused": str(error)}
    return {"revision": fetched.revision, "output": fetched.sae(X).tolist()}


def from_cache(folder, tiny):
    """Load every release from a cache made by hand."""
    from saematch.sae.sources.released import ReleasedSaes

    write_cache(folder / "hub", files(SAE, folder / "saelens"))
    write_cache(folder / "hub", files(EARLIER, folder / "saelens_2", 2))
    outcomes = {name: outcome(name) for name in RELEASES}
    outcomes["absent"] = outcome("gemma", 4)
    source = ReleasedSaes("gemma", "layer_{layer}")
    outcomes["source"] = {"layers": source.layers(), "origin": vars(source.load(3).origin)}
    outcomes["runs"] = {name: ran_on(name, folder, tiny) for name in RELEASES}
    return outcomes


def ran_on(name, folder, tiny):
    """Skip a layer with SAEs of layers 2 and 3; return the results or the refusal."""
    from saematch.app.configuration import build
    from saematch.runs.run import run

    own = [s for s in tiny_overrides(tiny) if not s.startswith("sae")]
    settings = [
        "+experiment=skip_layers",
        *own,
        "sae=saelens",
        f"sae.release={name}",
        'sae.id_template="layer_{layer}"',
        "layers=[2,3]",
        "stand_in=activation",
        "setting.max_tokens=20",
        "intervals.n_replicates=20",
        "logger=none",
        "figures=[]",
    ]
    results = run(*build(settings), folder / name)
    tables = results.tables
    return {
        "saes": results.provenance["saes"],
        "thresholds": tables.rows("layers")[0]["thresholds"],
        "arms": [row["arm"] for row in tables.rows("matches")],
        "values": [row["explained_variance"] for row in tables.rows("strategies")],
    }


def from_hub(folder, patch):
    """Load from a hub, some of whose answers are broken."""
    repos = files(SAE, folder / "saelens")
    good = repos[GEMMA]
    torn = {path: content[:-300] for path, content in good.items()}
    hub = Hub(
        {**repos, **{f"tiny/{name}-2b-pt-res": good for name in CUTS}, faulty_repo("torn"): torn}
    )
    hub.errors = {f"tiny/{name}-2b-pt-res": fault for name, fault in ERRORS.items()}
    hub.cuts = {f"tiny/{name}-2b-pt-res": count for name, count in CUTS.items()}
    with serving(hub):
        connect(patch, hub, folder / "hub")
        patch.setattr(time, "sleep", lambda _: None)  # the client waits between attempts
        register(patch)
        names = ["gemma", "gemma3", "saelens", *ERRORS, *CUTS, "torn"]
        outcomes = {name: outcome(name) for name in names}
        outcomes["absent"] = outcome("gemma", 4)
        outcomes["resumed"] = [request for request in hub.asked if "hasty" in request]
        left = folder.glob("hub/*hopeless*/snapshots/**/*")
        outcomes["half-written"] = [str(path) for path in left if path.is_file()]
        sys.stderr.write("FROM HERE ON NOTHING IS FETCHED\n")
        outcomes["again"] = outcome("gemma")
        hub.errors[GEMMA] = ERRORS["ill"]
        outcomes["ill, but in the cache"] = outcome("gemma")
        del hub.errors[GEMMA]
        sys.stderr.write("FROM HERE ON IT IS AGAIN\n")
        hub.commits[GEMMA] = LATER
        outcomes["later"] = outcome("gemma")
        hub.repos[faulty_repo("torn")] = good
        hub.commits[faulty_repo("torn")] = LATER
        Path(outcomes["torn"]["refused"].split("the file ")[1].split(" is damaged")[0]).unlink()
        outcomes["mended"] = outcome("torn")
    outcomes["unreachable"] = outcome("gemma", 4)
    return outcomes


@pytest.fixture(scope="module")
def cached(tmp_path_factory, tiny):
    """Return the results from the cache, and what was written to stderr."""
    import huggingface_hub.constants

    folder = tmp_path_factory.mktemp("from_cache")
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as log:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
        register(patch)
        outcomes = from_cache(folder, tiny)
    return outcomes | {"log": log.getvalue()}


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """Return the results from the hub, and what was written to stderr."""
    folder = tmp_path_factory.mktemp("from_hub")
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as log:
        patch.setenv("TQDM_POSITION", "-1")
        enable_progress_bars()  # transformers disables them while a model is loaded
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            outcomes = from_hub(folder, patch)
            gc.collect()  # the damaged file is left open
    return outcomes | {"log": log.getvalue()}


def close(outcomes, expected):
    assert torch.allclose(torch.tensor(outcomes["output"]), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma", "gemma3", "saelens"])
def test_one_sae_in_three_layouts(cached, fetched, name):
    for outcomes in (cached, fetched):
        close(outcomes[name], SAE.reconstruct(X))
        assert outcomes[name]["revision"] == COMMIT


@pytest.mark.parametrize("name", RELEASES)
def test_every_layout_is_matched_and_skipped(cached, name):
    run = cached["runs"][name]
    kind = {"llama": "one for all", "qwen": "none"}.get(name, "per feature")
    assert run["thresholds"] == kind
    assert run["arms"] == ["folded", "unfolded", "identity", "random"]
    assert run["values"]
    assert all(math.isfinite(value) for value in run["values"])
    for layer in ("2", "3"):
        origin = run["saes"][layer]
        assert origin["revision"] == COMMIT
        assert origin["sae_id"].startswith(at_layer(RELEASES[name][2], int(layer)))
        assert origin["stand_in_name"].startswith("quantile") == (name == "qwen")


def test_qwen_scope_keeps_the_k_largest(cached):
    pre = X @ SAE.W_enc + SAE.b_enc
    kept = pre * (pre >= pre.sort(dim=1, descending=True).values[:, 2:3])
    close(cached["qwen"], SAE.decode(kept.relu()))


def test_llama_scope_on_raw_activations(cached):
    """Its weights act on activations of mean norm sqrt(d), its threshold on those of the model.

    Llama Scope's threshold was found after the scale had been folded into the weights, where
    features have the units of raw activations, while the published weights are those before that.
    """
    scale = D_MODEL**0.5 / NORM
    pre = (scale * X) @ SAE.W_enc + SAE.b_enc

    def decoded(threshold):
        return SAE.decode(torch.where(pre > threshold, pre, 0.0)) / scale

    close(cached["llama"], decoded(THETA * scale))
    assert not torch.allclose(decoded(THETA), decoded(THETA * scale), atol=1e-2)


def test_what_is_recorded(cached):
    assert cached["source"]["layers"] == [2, 3, 4]
    assert (
        cached["source"]["origin"].items()
        >= {
            "layer": 3,
            "release": "tiny/gemma-scope-2b-pt-res",
            "sae_id": "layer_3/width_16k/average_l0_10",
            "revision": COMMIT,
            "model_name": "tiny",
            "mean_l0": 10.0,
            "neuronpedia_id": "tiny/3-tinyscope",
        }.items()
    )


def test_the_revision_is_the_one_that_was_read(fetched):
    assert fetched["again"]["revision"] == COMMIT
    assert fetched["ill, but in the cache"]["revision"] == COMMIT
    assert fetched["later"]["revision"] == LATER
    close(fetched["ill, but in the cache"], SAE.reconstruct(X))


def test_a_download_that_broke_off_goes_on(fetched):
    close(fetched["hasty"], SAE.reconstruct(X))
    assert sum(request.startswith("GET") for request in fetched["resumed"]) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone", "the hub has no repository tiny/gone-2b-pt-res"),
        ("gated", "accept it on the repository's page, and set HF_TOKEN"),
        ("ill", "it is not in the cache, and the hub answers with error 500"),
        ("hopeless", "the download failed"),
        ("absent", "no longer has the file that SAELens' registry names"),
        ("unreachable", "it is not in the cache, and the Hugging Face hub cannot be reached"),
    ],
)
def test_what_the_hub_cannot_give(fetched, name, words):
    assert words in fetched[name]["refused"]
    assert "\n" not in fetched[name]["refused"]
    assert name == "gated" or "sae=disk sae.path=" in fetched[name]["refused"]
    assert fetched["half-written"] == []


def test_no_connection_and_not_in_the_cache(cached):
    assert cached["absent"]["refused"].startswith("cannot fetch gemma/layer_4: it is not in the")
    assert "HF_HUB_OFFLINE is set" in cached["absent"]["refused"]


def test_a_run_without_a_connection_asks_the_hub_once(tmp_path, monkeypatch, capfd):
    from huggingface_hub import constants, hf_api

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hf_api.api, "endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    saes = {f"l{n}": RegisteredSae(f"saes/l{n}", None, None) for n in range(2)}
    release = Release("r", "tiny/r", "tiny", "gemma_2", saes)
    words = r"cannot fetch 2 SAEs of tiny/r \(such as saes/l0\): not in the cache, and the Hugging"
    with pytest.raises(ValueError, match=words):
        log_download((release, sae_id) for sae_id in saes)
    assert "Retrying" not in capfd.readouterr().err


def test_a_damaged_file_is_named_and_fetched_again_once_deleted(fetched):
    assert "is damaged or has another layout (File is not a zip file)" in fetched["torn"]["refused"]
    close(fetched["mended"], SAE.reconstruct(X))
    assert fetched["mended"]["revision"] == LATER


def test_a_bar_shows_what_is_fetched_and_no_more(cached, fetched):
    before, _, rest = fetched["log"].partition("FROM HERE ON NOTHING IS FETCHED")
    assert "params.npz: 100%" in before.replace("(…)", "")
    assert "100%" not in rest.partition("FROM HERE ON IT IS AGAIN")[0]
    assert "npz: 100%" not in cached["log"]
