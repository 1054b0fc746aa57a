"""SAEs by SAELens' registry, with the hub's cache made by hand."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from conftest import random_sae
from saematch.sae.released import ExplainedSae, ReleasedSaes, explained_as, explained_near
from saematch.sae.selection import SimilarL0

GEMMA = ReleasedSaes(
    "gemma-scope-2b-pt-res-canonical",
    "layer_{layer}/width_16k/canonical",
    "gemma-scope-2b-pt-res",
    "layer_{layer}/width_16k/average_l0_{l0}",
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_layers_and_offers_come_from_the_registry_alone():
    assert GEMMA.layers() == list(range(26))
    offers = GEMMA.offers(20)
    assert [offer.mean_l0 for offer in offers] == sorted(offer.mean_l0 for offer in offers)
    assert {22.0, 38.0, 71.0, 139.0} <= {offer.mean_l0 for offer in offers}
    chosen = next(offer for offer in offers if offer.mean_l0 == 71.0).source
    assert chosen.release == "gemma-scope-2b-pt-res"
    assert chosen.sae_id == "layer_{layer}/width_16k/average_l0_71"
    assert [offer.mean_l0 for offer in ReleasedSaes(GEMMA.release, GEMMA.sae_id).offers(4)] == [
        124.0
    ]


def test_similar_l0_on_gemma_scope():
    """What the paper picked by hand: near 70, the chain changes less than the released set."""
    sets = SimilarL0(min_l0=40.0, max_l0=150.0)(GEMMA, GEMMA.layers())
    own = [GEMMA.offers(layer) for layer in GEMMA.layers()]
    canonical = [105, 102, 141, 59, 124, 68, 70, 69, 71, 73, 77, 80, 82, 84, 84, 78, 78, 77, 74, 73,
                 71, 70, 72, 75, 73, 116]  # fmt: skip
    similar = [
        next(o.mean_l0 for o in of_layer if o.source == sets["similar"].by_layer[layer])
        for layer, of_layer in enumerate(own)
    ]
    assert np.abs(np.diff(similar)).sum() < np.abs(np.diff(canonical)).sum()


def test_wrong_names_list_close_ones():
    with pytest.raises(ValueError, match="close ones: gemma-scope-2b-pt-res"):
        ReleasedSaes("gemma-scope-2b-pt-re", "layer_{layer}/x").layers()
    wrong = ReleasedSaes(GEMMA.release, "layer_{layer}/width_16k/canonica")
    with pytest.raises(ValueError, match="it has layer_3/width_16k/canonical"):
        wrong.load(3)
    with pytest.raises(ValueError, match="must hold"):
        ReleasedSaes(GEMMA.release, "layer_3/width_16k/canonical")


def test_explained_saes_like_another_are_of_its_repository_and_layer():
    repo = "google/gemma-scope-2b-pt-res"
    canonical = ExplainedSae(
        "gemma-scope-2b-pt-res-canonical",
        "layer_20/width_16k/canonical",
        "layer_20/width_16k/average_l0_71",
        "gemma-2-2b/20-gemmascope-res-16k",
    )
    near = explained_near(repo, "layer_20/width_16k/average_l0_38", 20)
    assert near[0] == canonical
    assert all(one.neuronpedia_id.startswith("gemma-2-2b/20-gemmascope-res-") for one in near)
    assert explained_near(repo, "layer_20/width_65k/average_l0_61", 20)[0] != canonical
    assert explained_near("nobody/nothing", "layer_20", 20) == []


def test_one_file_under_two_names_has_one_explanation():
    release = "gemma-scope-2b-pt-res"
    source = "gemma-2-2b/20-gemmascope-res-16k"
    assert explained_as(f"{release}-canonical", "layer_20/width_16k/canonical", 20) == source
    assert explained_as(release, "layer_20/width_16k/average_l0_71", 20) == source
    assert explained_as(release, "layer_20/width_16k/average_l0_38", 20) is None
    table_1 = "layer_13/width_16k/average_l0_83"  # the paper's, which is another SAE
    assert explained_as(release, table_1, 13) is None
    assert explained_as(release, "layer_13/width_16k/average_l0_84", 13) is not None


CODE = """
import sys
from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup, \\
    get_pretrained_saes_directory
paths = {f"layer_{l}/tiny": f"layer_{l}/width_16k/average_l0_{7 + l}" for l in (3, 4)}
get_pretrained_saes_directory()["tiny-zoo"] = PretrainedSAELookup(
    "tiny-zoo", "tiny/gemma-scope-2b-pt-res", "tiny", "gemma_2", paths, {}, {},
    {"layer_3/tiny": "tiny/3-tinyscope", "layer_4/tiny": None}, {},
    {"d_in": 16, "d_sae": 24, "model_name": "tiny"})
from saematch.sae.released import ReleasedSaes
from saematch.results import write_json
from pathlib import Path
source = ReleasedSaes("tiny-zoo", "layer_{layer}/tiny")
sae = source.load(3)
try:
    source.load(4)
except ValueError as error:
    refused = str(error)
origin = vars(sae.origin)
write_json(Path(sys.argv[1]), {"layers": source.layers(), "origin": origin, "refused": refused,
    "W_dec": sae.W_dec.tolist(), "threshold": sae.threshold.tolist()})
"""


def test_the_whole_way_from_the_hubs_cache(tmp_path):
    """In a process of its own: the hub's settings are read once, when it is imported."""
    sae = random_sae(0)
    hub = tmp_path / "hub/models--tiny--gemma-scope-2b-pt-res"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs/main").write_text(COMMIT)
    folder = hub / f"snapshots/{COMMIT}/layer_3/width_16k/average_l0_10"
    folder.mkdir(parents=True)
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    np.savez(folder / "params.npz", **{name: getattr(sae, name).numpy() for name in names})
    told = tmp_path / "told.json"
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CODE), str(told)],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    found = json.loads(told.read_text())
    assert found["layers"] == [3, 4]
    assert found["W_dec"] == sae.W_dec.tolist()
    assert found["threshold"] == sae.threshold.tolist()
    assert found["origin"]["revision"] == COMMIT
    assert found["origin"]["mean_l0"] == 10.0
    assert found["origin"]["model_name"] == "tiny"
    assert found["origin"]["neuronpedia_id"] == "tiny/3-tinyscope"
    assert found["refused"].startswith("cannot fetch tiny-zoo/layer_4/tiny")
    assert "sae=saelens" in found["refused"]
