"""Choice among the SAEs in SAELens' registry, without a download."""

import numpy as np
import pytest

from saematch.app.configuration import build
from saematch.sae.sources import registry
from saematch.sae.sources.registry import ExplainedSae, explained_as, explained_near
from saematch.sae.sources.released import ReleasedSaes
from saematch.sae.sources.selection import SimilarL0

GEMMA = ReleasedSaes(
    "gemma-scope-2b-pt-res-canonical",
    "layer_{layer}/width_16k/canonical",
    "gemma-scope-2b-pt-res",
    "layer_{layer}/width_16k/average_l0_{l0}",
)


def test_layers_and_offers_come_from_the_registry_alone():
    assert GEMMA.layers() == list(range(26))
    offers = GEMMA.offers(20)
    assert [offer.mean_l0 for offer in offers] == sorted(offer.mean_l0 for offer in offers)
    assert {22.0, 38.0, 71.0, 139.0} <= {offer.mean_l0 for offer in offers}
    chosen = next(offer for offer in offers if offer.mean_l0 == 71.0).source
    assert chosen.release == "gemma-scope-2b-pt-res"
    assert chosen.id_template == "layer_{layer}/width_16k/average_l0_71"
    assert [
        offer.mean_l0 for offer in ReleasedSaes(GEMMA.release, GEMMA.id_template).offers(4)
    ] == [124.0]


def test_similar_l0_on_gemma_scope():
    """The paper's choice by hand: near 70, the chain changes less than the released suite."""
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
    with pytest.raises(ValueError, match="similar names: gemma-scope-2b-pt-res"):
        ReleasedSaes("gemma-scope-2b-pt-re", "layer_{layer}/x").layers()
    wrong = ReleasedSaes(GEMMA.release, "layer_{layer}/width_16k/canonica")
    with pytest.raises(ValueError, match="it has layer_3/width_16k/canonical"):
        wrong.load(3)
    with pytest.raises(ValueError, match="must contain"):
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
    assert all(
        explained.neuronpedia_id.startswith("gemma-2-2b/20-gemmascope-res-") for explained in near
    )
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


def preset(*settings):
    return build(list(settings))[0].sae


PRESETS = [
    ("gemma_scope_2b", range(26), 59, 141),
    ("gemma_scope_2b sae.width=65k", range(26), 70, 128),
    ("gemma_scope_2b sae.width=1m", [5, 12, 19], 88, 114),
    ("gemma_scope_2b sae.width=524k", [12], 115, 115),
    ("gemma_scope_2b sae.site=mlp_out", range(26), 60, 136),
    ("gemma_scope_2b sae.site=hook_z sae.width=65k", range(26), 63, 140),
    ("gemma_scope_2b_table_1", range(26), 59, 141),
    ("gemma_scope_9b", range(42), 67, 132),
    ("gemma_scope_9b sae.width=131k sae.site=hook_z", range(42), 55, 135),
    ("gemma_scope_2_270m", range(18), 10, 20),
    ("gemma_scope_2_270m sae.site=attn_out sae.width=262k sae.l0=big", range(18), 60, 120),
    ("gemma_scope_2_1b sae.site=mlp_out", range(26), 10, 20),
    ("gemma_scope_2_4b sae.l0=big", range(34), 60, 120),
    ("gemma_scope_2_4b sae.release=gemma-scope-2-4b-pt-res sae.width=65k sae.l0=medium",
     [9, 17, 22, 29], 53, 60),
    ("gemma_scope_2_12b", range(48), 10, 20),
    ("gemma_scope_2_27b sae.width=262k", range(62), 10, 20),
    ("llama_scope", range(32), 50, 50),
    ("llama_scope sae.width=32x sae.site=attn_out", range(32), 50, 50),
    ("gpt2_res_jb", range(11), 10, 70),
    ("gpt2_v5 sae.width=128k", range(12), 32, 32),
    ("gpt2_v5 sae.site=mlp_out", range(12), None, None),
    ("pythia_70m", range(6), None, None),
    ("pythia_70m sae.site=attn_out", range(6), None, None),
    ("qwen_scope", range(28), 50, 50),
    ("qwen_scope sae.release=qwen-scope-3.5-27b-w80k-l100", range(64), 100, 100),
]  # fmt: skip


@pytest.mark.parametrize(("choice", "layers", "least", "most"), PRESETS)
def test_presets_take_what_the_registry_has(choice, layers, least, most):
    """Every id exists, with a stated mean L0 where the release states any."""
    source = preset(*f"sae={choice}".split())
    assert source.layers() == list(layers)
    taken = [source.chosen(layer) for layer in source.layers()]
    stated = [registry.release(name).sae(sae_id).mean_l0 for name, sae_id in taken]
    if least is None:
        assert stated == [None] * len(stated)
    else:
        assert (min(stated), max(stated)) == (least, most)


def test_resid_pre_is_what_the_layer_before_wrote():
    assert preset("sae=gpt2_res_jb").chosen(0) == ("gpt2-small-res-jb", "blocks.1.hook_resid_pre")


def test_the_nearest_mean_l0_by_ratio():
    near = preset("sae=gemma_scope_2b", "sae.l0=60")
    # of 22, 38, 71, 139 and 408: 71/60 = 1.18 is nearer than 60/38 = 1.58
    assert near.chosen(20)[1] == "layer_20/width_16k/average_l0_71"
    # between 38 and 71 the ratios are equal at 51.9, while the difference is at 54.5
    assert preset("sae=gemma_scope_2b", "sae.l0=53").chosen(20)[1].endswith("_71")
    assert near.name == (
        "gemma-scope-2b-pt-res/layer_{layer}/width_16k/average_l0_{l0} of mean L0 near 60"
    )
    with pytest.raises(ValueError, match="has no SAE for layer 26"):
        near.chosen(26)


def test_table_1_names_its_files_that_do_not_exist(caplog, monkeypatch):
    table = preset("sae=gemma_scope_2b_table_1")
    paths = {layer: table.chosen(layer)[1].rpartition("_")[2] for layer in table.layers()}
    canonical = [registry.release(GEMMA.release).sae(GEMMA.chosen(layer)[1]).path.rpartition("_")[2]
                 for layer in table.layers()]  # fmt: skip
    other = {layer: l0 for layer, l0 in paths.items() if l0 != canonical[layer]}
    assert other == {4: "125", 13: "83", 14: "83"}
    assert not caplog.messages, "choosing is silent: a run chooses several times"

    def no_hub(*_):
        raise ValueError("no hub")

    monkeypatch.setattr("saematch.sae.sources.released.fetch", no_hub)
    for layer in table.layers():
        with pytest.raises(ValueError, match="no hub"):
            table.load(layer)
    assert caplog.messages == [
        "layer 0: no SAE has mean L0 102; using layer_0/width_16k/average_l0_105",
        "layer 1: no SAE has mean L0 108; using layer_1/width_16k/average_l0_102",
    ]


def test_any_release_by_its_name():
    settings = ["sae=saelens", "sae.release=gemma-2-2b-res-matryoshka-dc",
                'sae.id_template="blocks.{layer}.hook_resid_post"']  # fmt: skip
    assert preset(*settings).layers() == list(range(25))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["sae=llama_scope", "sae.site=mpl"],
            "sae.site=mpl is not one of resid_post, mlp_out, attn_out",
        ),
        (["sae=llama_scope", "+sae.l0=50"], "no SAEs to choose from, unless sae.offers_id"),
        (["sae=gemma_scope_2b", "sae.l0=0"], "a mean L0 must be above 0"),
        (["sae=gemma_scope_2b", "sae.offers_id=x"], r"must contain {layer} and {l0} once"),
        (["sae=qwen_scope", 'sae.id_template="layer{layr}"'], "may contain layer, width, site"),
    ],
)
def test_settings_that_fit_no_release(settings, message):
    with pytest.raises(Exception, match=message):
        preset(*settings)
    assert preset("sae=gemma_scope_2b", "sae.l0=70").layers() == list(range(26))


def test_a_width_that_no_layer_has():
    with pytest.raises(ValueError, match=r"/width_66k/canonical'; it has"):
        preset("sae=gemma_scope_2b", "sae.width=66k").layers()
