"""The loaded model, the first token of texts, and messages for missing models."""

import json
import shutil

import pytest

from saematch.core.downloads import HubModel
from saematch.core.errors import InputError
from saematch.lm import source
from saematch.lm.source import LmSource


def load(folder, **settings):
    return LmSource(str(folder), "tiny", **settings).load()


@pytest.fixture
def without_bos(tiny, tmp_path):
    folder = shutil.copytree(tiny / "lm", tmp_path / "lm")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["bos_token"]
    path.write_text(json.dumps(config))
    return folder


def test_what_texts_begin_with(tiny, without_bos):
    assert load(tiny / "lm").bos_id == 0
    assert load(tiny / "lm", bos="<unk>").bos_id == 1
    assert load(without_bos, bos="none").bos_id is None
    assert load(without_bos, bos="<bos>").bos_id == 0


def test_a_bos_that_is_not_there_is_refused(tiny, without_bos):
    with pytest.raises(ValueError, match=r"no BOS token: set model.bos .* or model.bos=none"):
        load(without_bos)
    with pytest.raises(ValueError, match=r"model.bos='two words' is \d+ tokens of .*, not one"):
        load(tiny / "lm", bos="two words")
    with pytest.raises(ValueError, match=r"model\.bos is empty"):
        LmSource("zoo", "zoo", bos="")


def test_spellings_of_one_name():
    gpt2 = LmSource("openai-community/gpt2", "gpt2-small")
    assert all(gpt2.is_called(name) for name in ("gpt2", "gpt2-small", "openai-community/GPT2"))
    assert not any(gpt2.is_called(name) for name in ("gpt2-medium", "small", "openai-community"))
    gemma = LmSource("some/folder/", "google/gemma-3-270m")
    assert gemma.is_called("gemma-3-270m")
    assert not gemma.is_called("google/gemma-3-270m-it")


def test_the_revision_of_a_folder_is_its_content(tiny, without_bos):
    first, second = load(tiny / "lm").revision, load(without_bos, bos="none").revision
    assert first.startswith("sha256:") and second.startswith("sha256:")
    assert first != second, "the tokenizer belongs to it"


@pytest.mark.parametrize(
    ("path", "made_by", "message"),
    [
        (
            "outputs/models/none",
            "make smollm2",
            "'outputs/models/none': there is no such folder; run make smollm2",
        ),
        ("outputs/models/none", None, "there is no such folder; set model.path"),
        ("nobody/nothing", None, "there is no such folder, it is not in the cache, and HF_HUB"),
    ],
)
def test_a_missing_model_in_one_line(path, made_by, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        LmSource(path, "none", made_by=made_by).load()
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"cannot load .*as saved by save_pretrained"):
        load(tmp_path)


def test_a_licence_that_was_not_accepted(monkeypatch):
    import transformers

    def refuse(*_, **__):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    answer = HubModel("google/gemma-2-2b", "main", {})
    monkeypatch.setattr(source, "hub_model", lambda *_: answer)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ValueError, match=r"a gated repo\. Accept its licence .* set HF_TOKEN, or"):
        LmSource("google/gemma-2-2b", "gemma-2-2b").load()


@pytest.mark.parametrize(
    ("flags", "on_cpu"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_fp16", "bfloat16"),
        ("flags\t\t: fpu amx_bf16 amx_tile", "bfloat16"),
        ("Features\t: fp asimd i8mm bf16 dgh", "bfloat16"),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", "float32"),
        (None, "float32"),
    ],
)
def test_the_dtype_auto_is_bfloat16_where_the_processor_has_it(
    flags, on_cpu, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(source, "_CPU", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags)
    auto = LmSource(str(tiny / "lm"), "tiny", dtype="auto")
    assert str(next(auto.load("cpu").parameters()).dtype) == f"torch.{on_cpu}"
    assert auto.open("gpu").dtype == "bfloat16"
    assert LmSource(str(tiny / "lm"), "tiny").open("gpu").dtype == "float32", "it is a setting"


def test_an_unknown_dtype_is_refused():
    with pytest.raises(
        InputError, match=r"model\.dtype='float8' is not auto, float32, bfloat16 or"
    ):
        LmSource("zoo", "zoo", dtype="float8")
