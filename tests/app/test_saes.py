"""``saematch saes``: what it lists, and that the settings it names take what it lists."""

import shlex

import pytest

from saematch.app.configuration import build
from saematch.app.saes import line, main, matching, presets, rows, settings
from saematch.sae.sources import registry

KNOWN = presets()


def line_of(name):
    return line(registry.release(name), KNOWN)


def test_a_release_in_one_line():
    assert line_of("gemma-scope-2b-pt-res-canonical") == (
        "gemma-scope-2b-pt-res-canonical", "gemma-2-2b", "resid_post", "JumpReLU",
        "16k 65k: 0-25, 32k 262k 524k: 12, 1m: 5 12 19", "59-141", "all", "setting=gemma_2_2b",
    )  # fmt: skip
    assert line_of("gemma-scope-2-270m-pt-res")[4:7] == (
        "16k 65k 262k 1m: 5 9 12 15", "18-150", "16 of 52"
    )  # fmt: skip
    assert line_of("gpt2-small-res-jb")[2:5] == ("resid_pre, resid_post", "", "0-11")
    assert line_of("llama_scope_lxa_32x")[2:6] == ("attn", "JumpReLU (1 θ)", "32x: 0-31", "50")
    assert line_of("qwen-scope-3-8b-base-w64k-l50")[2:5] == ("resid_post", "TopK", "64k: 0-35")
    assert line_of("mwhanna-qwen3-4b-transcoders").site == "transcoder"
    assert line_of("saebench_gemma-2-2b_width-2pow16_date-0107")[3:5] == ("matryoshka", "65k: 12")


@pytest.mark.parametrize(
    ("name", "taken_by"),
    [
        ("gemma-scope-2b-pt-att", "setting=gemma_2_2b sae.site=hook_z sae.l0=70"),
        ("gemma-scope-2-27b-pt-res-all", "sae=gemma_scope_2_27b"),
        ("llama_scope_lxm_32x", "setting=llama_3_1_8b sae.site=mlp_out sae.width=32x"),
        ("gpt2-small-mlp-out-v5-128k",
         "model=gpt2_small sae=gpt2_v5 sae.site=mlp_out sae.width=128k"),
        ("pythia-70m-deduped-att-sm", "model=pythia_70m sae=pythia_70m sae.site=attn_out"),
        ("qwen-scope-3-1.7b-base-w32k-l50", "model=qwen3_1_7b sae=qwen_scope"),
        ("gpt2-small-res_sce-ajt",
         "model=gpt2_small sae=saelens sae.release=gpt2-small-res_sce-ajt "
         "'sae.id_template=\"blocks.{layer}.hook_resid_pre\"' sae.shift=1"),
    ],
)  # fmt: skip
def test_settings_of_a_release_take_it(name, taken_by):
    assert settings(registry.release(name), KNOWN) == taken_by
    experiment = build(shlex.split(taken_by))[0]
    source = experiment.sae
    assert ("model=" in taken_by or "setting=" in taken_by) == experiment.model.is_called(
        registry.release(name).model
    )
    assert {source.chosen(layer)[0] for layer in source.layers()} == {name}


def test_every_release_has_settings_unless_its_ids_name_no_layer():
    without = [name for name in registry.releases() if not line_of(name).settings]
    assert without == []


def test_patterns():
    assert {release.name for release in matching("pythia-70m-deduped-*-sm")} == {
        f"pythia-70m-deduped-{site}-sm" for site in ("res", "mlp", "att")
    }
    assert "llama_scope_lxr_8x" in {release.name for release in matching("meta-llama/Llama-3.1-8B")}
    assert {release.model for release in matching("fnlp/LLAMA3_1")} == {"meta-llama/Llama-3.1-8B"}
    assert matching("") == list(registry.releases().values())


def test_the_whole_name_of_a_release_lists_its_saes(capsys):
    main(["gpt2-small-res-jb"])
    shown = capsys.readouterr().out
    assert "0      blocks.0.hook_resid_pre    10       gpt2-small/0-res-jb" in shown
    assert shown.rstrip().endswith("gpt2-small-res-jb: model=gpt2_small sae=gpt2_res_jb")
    listed = list(rows(registry.release("gemma-scope-2b-pt-res-canonical")))
    assert [int(row[0]) for row in listed] == sorted(int(row[0]) for row in listed)
    assert ("12", "layer_12/width_1m/canonical", "107", "gemma-2-2b/12-gemmascope-res-1m") in listed
    main(["pythia-70m-deduped-*-sm", "--ids"])
    assert capsys.readouterr().out.count("layer  id") == 3


def test_nothing_fits():
    with pytest.raises(ValueError, match="similar names: gemma-scope-2b-pt-res"):
        main(["gemma-scop-2b-pt-res"])


def test_a_listing_begins_with_the_release_of_the_paper_and_fits_the_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["gemma"])
    lines = [text.strip() for text in capsys.readouterr().out.splitlines()]
    assert lines[1:3] == ["gemma-2-2b", "gemma-scope-2b-pt-res-canonical"]
    assert lines[-1].endswith("more releases: add words, or --all")
    assert all(len(text) <= 80 for text in lines if not text.startswith("sae="))
    main(["gemma", "--all"])
    listed = {text.strip() for text in capsys.readouterr().out.splitlines()}
    assert {release.name for release in matching("gemma")} <= listed
