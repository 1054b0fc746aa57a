"""The language model's weights, blocks, tokens and files are as stated, or it is refused."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import N_LAYERS, TEXTS
from saematch.core.memory import is_out_of_memory
from saematch.lm.hooks import LanguageModel
from saematch.lm.self_test import self_test
from saematch.lm.source import LmSource

IDS = torch.randint(2, 64, (2, 12), generator=torch.Generator().manual_seed(1))
PER_BLOCK = 9
"""Weights of a block of Llama: four of attention, three of the MLP, two norms."""


def load(folder, **settings):
    return LmSource(str(folder), "tiny", **settings).load()


def refusal(folder, **settings):
    with pytest.raises(ValueError) as error:
        load(folder, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny / "lm", tmp_path / "lm")


def configure(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def rewrite(folder, change):
    """Save the weights under the names, and with the values, that ``change`` returns."""
    path = folder / "model.safetensors"
    weights = change(load_file(path))
    save_file({name: w.contiguous() for name, w in weights.items()}, path, {"format": "pt"})


def logits(lm):
    return lm.model(input_ids=IDS).logits


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "_fsdp."])
def test_A1_a_checkpoint_with_prefixed_keys_is_refused(folder, prefix):
    n = len(load_file(folder / "model.safetensors"))
    assert n == N_LAYERS * PER_BLOCK + 3
    rewrite(folder, lambda weights: {prefix + name: w for name, w in weights.items()})
    message = refusal(folder)
    assert f"{n} weights missing from the file (lm_head.weight, model.embed_tokens" in message
    assert f"{n} weights in the file that the model does not have ({prefix}lm_head" in message
    assert f"begins with {prefix!r}: save the model itself with save_pretrained" in message


def test_A1_the_command_line_refuses_a_wrapped_model_before_any_result(cli, folder, tmp_path):
    rewrite(folder, lambda weights: {f"_orig_mod.{name}": w for name, w in weights.items()})
    message, output = cli(f"model.path={folder}", "run_id=a")
    assert message.startswith(f"saematch: cannot load the language model '{folder}': the weights")
    assert "_orig_mod." in message
    assert "Traceback" not in output.err
    assert not list(tmp_path.glob("outputs/**/results.json"))


def test_A1_a_layer_that_is_missing_is_refused(folder):
    rewrite(folder, lambda weights: {n: w for n, w in weights.items() if ".layers.2." not in n})
    message = refusal(folder)
    assert f"{PER_BLOCK} weights missing from the file (model.layers.2." in message
    assert "does not have" not in message


@pytest.mark.parametrize(
    ("n_layers", "words"),
    [
        (N_LAYERS + 1, f"{PER_BLOCK} weights missing from the file (model.layers.4."),
        (N_LAYERS - 1, f"{PER_BLOCK} weights in the file that the model does not have (model.lay"),
    ],
)
def test_A1_more_or_fewer_blocks_than_the_file_are_refused(folder, n_layers, words):
    configure(folder, num_hidden_layers=n_layers)
    message = refusal(folder)
    assert words in message
    assert "Use the config.json that belongs to the weights" in message


def test_A1_an_untied_head_without_a_weight_is_refused_and_a_tied_one_is_not(folder):
    rewrite(folder, lambda weights: {n: w for n, w in weights.items() if n != "lm_head.weight"})
    assert "1 weights missing from the file (lm_head.weight)" in refusal(folder)
    configure(folder, tie_word_embeddings=True)
    lm = load(folder)
    assert torch.equal(lm.model.lm_head.weight, lm.model.model.embed_tokens.weight)


def test_A1_a_base_model_and_tables_of_older_versions_are_no_fault(folder, tiny):
    def older(weights):
        tables = {
            f"layers.{n}.self_attn.{name}": torch.ones(4)
            for n in range(N_LAYERS)
            for name in ("rotary_emb.inv_freq", "rotary_emb.cos_cached")
        }
        base = {name.removeprefix("model."): w for name, w in weights.items()}
        return base | tables | {"layers.0.attn.masked_bias": torch.zeros(1)}

    rewrite(folder, older)
    assert torch.equal(logits(load(folder)), logits(load(tiny / "lm")))


def test_A1_parts_that_process_no_text_are_left_out(folder, tiny):
    """A causal model of Llama 4 leaves out the vision tower of its checkpoint."""
    from transformers import Llama4Config, Llama4ForCausalLM

    text = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 32, "intermediate_size_mlp": 32,
            "head_dim": 8, "num_local_experts": 2, "pad_token_id": 1, "bos_token_id": 0,
            "eos_token_id": 1, "attention_chunk_size": 64}  # fmt: skip
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 32, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Llama4Config(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    model = Llama4ForCausalLM(config.text_config).eval()
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    config.save_pretrained(folder)

    def with_vision(weights):
        composite = {f"language_model.{name}": w for name, w in weights.items()}
        return composite | {
            "vision_model.model.layers.0.mlp.fc1.weight": torch.ones(32, 16),
            "multi_modal_projector.linear_1.weight": torch.ones(32, 16),
        }

    rewrite(folder, with_vision)
    tokens = IDS % 60
    expected = model(input_ids=tokens).logits
    source = LmSource(str(folder), "llama4")
    from saematch.lm.checkpoint import read_parts, read_weights

    loaded = read_weights(str(folder), read_parts(str(folder), None), torch.float32, None)
    assert torch.equal(loaded.eval()(input_ids=tokens).logits, expected)
    rewrite(folder, lambda w: w | {"language_model.model.layers.2.x.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"1 weights in the file that .*layers\.2\.x\.weight"):
        source.load()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"intermediate_size": 48}, "is [16, 32] in the file and [16, 48] by config.json"),
        ({"hidden_size": 32, "head_dim": 8}, "[32] by config.json"),
    ],
)
def test_B5_sizes_that_differ_between_configuration_and_file_are_refused(folder, setting, words):
    configure(folder, **setting)
    message = refusal(folder)
    assert "weights of another shape (" in message
    assert words in message


def gemma_4(**settings):
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    layer_types = ["sliding_attention", "full_attention"] * 3
    config = Gemma4TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, global_head_dim=8,
        sliding_window=4, hidden_size_per_layer_input=4, vocab_size_per_layer_input=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, layer_types=layer_types, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma4ForCausalLM(config).eval().requires_grad_(False)
    return LanguageModel(model, None, "gemma_4")


def test_B1_blocks_that_share_keys_and_values_see_the_true_ones():
    lm = gemma_4(num_kv_shared_layers=2)  # blocks 4 and 5 read the keys of 2 and 3
    self_test(lm)
    assert lm.runs_earlier_blocks
    states, _ = lm.capture(IDS, tuple(range(6)))
    for layer in range(6):
        final = lm.continue_from(layer, states[layer], IDS)
        assert torch.equal(lm.logits(final), logits(lm)), layer
        other = states[layer].flip(1)
        hook = lm.model.model.layers[layer].register_forward_hook(lambda *_, new=other: new)
        expected = logits(lm)
        hook.remove()
        assert torch.equal(lm.logits(lm.continue_from(layer, other, IDS)), expected), layer
    assert torch.equal(lm.states(IDS, (1,))[1], states[1])


def test_B1_blocks_with_keys_of_their_own_are_skipped_as_before():
    lm = gemma_4(num_kv_shared_layers=0)
    self_test(lm)
    assert not lm.runs_earlier_blocks


def test_B2_several_residual_streams_are_refused():
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

    config = DeepseekV4Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, head_dim=8,
        moe_intermediate_size=16, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2,
        q_lora_rank=16, qk_rope_head_dim=4, max_position_embeddings=64, sliding_window=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = DeepseekV4ForCausalLM(config).eval()
    with pytest.raises(ValueError, match=r"block 0 returns hidden states of shape \[2, 8, 4"):
        self_test(LanguageModel(model, None, "streams"))


def test_B3_a_model_that_reads_later_tokens_is_refused():
    """Not causal: the padding of a batch would change the hidden states of its texts."""
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertLMHeadModel(BertConfig(**sizes, intermediate_size=64)).eval()
    with pytest.raises(ValueError, match="depend on later tokens, so it is not a causal"):
        self_test(LanguageModel(model, None, "encoder"))


def test_B3_logits_that_are_not_finite_are_refused(folder):
    rewrite(folder, lambda w: w | {"model.norm.weight": 1e5 * w["model.norm.weight"]})
    assert load(folder, dtype="bfloat16").d_model == 16
    message = refusal(folder, dtype="float16")
    assert "the logits are not finite in torch.float16: set model.dtype=bfloat16" in message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device_map", [None, {"": "cpu"}])
def test_B3_the_self_test_passes_in_every_precision(tiny, dtype, device_map):
    lm = load(tiny / "lm", dtype=dtype, device_map=device_map)
    assert (lm.model.dtype, lm.runs_earlier_blocks) == (getattr(torch, dtype), False)


def test_B3_a_model_whose_blocks_have_a_way_past_the_hidden_state_is_refused(tiny):
    """The last block reads the previous block's output, not its own input."""
    lm = load(tiny / "lm")
    before, last = lm.blocks[2], lm.blocks[3]
    own, noted = before.forward, []

    def forward(*args, **kwargs):
        noted.append(own(*args, **kwargs))
        return noted[-1]

    before.forward = forward
    last.register_forward_pre_hook(lambda _, args: (noted[-1], *args[1:]))
    with pytest.raises(ValueError, match="another hidden state does not change the logits"):
        self_test(lm)


def resize(folder, rows):
    configure(folder, vocab_size=rows)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    rewrite(folder, lambda w: w | {name: w[name][:rows] for name in names})


def test_B4_a_tokenizer_with_more_ids_than_the_model_is_refused(folder):
    resize(folder, 50)
    assert "only for the ids 0 to 49: use the tokenizer of the model" in refusal(folder)


def test_B4_an_added_token_without_an_embedding_is_refused_where_a_text_holds_it(
    cli, folder, tmp_path
):
    """Gemma 3's tokenizer has an image token for which text models have no row."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    assert load(folder).n_embeddings == rows
    texts = tmp_path / "images.jsonl"
    lines = [*TEXTS[:4], f"{TEXTS[4]} <image> and more"]
    texts.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    message, output = cli(f"model.path={folder}", f"dataset.paths=[{texts}]")
    assert f"'images' has the token '<image>' with the id {rows}, but tiny has" in message
    assert "Traceback" not in output.err


def too_much(*_, **__):
    torch.empty(2**60)


def test_B9_a_model_that_does_not_fit_into_memory_ends_in_one_line(tiny, monkeypatch):
    import transformers

    with pytest.raises(RuntimeError) as error:
        too_much()
    assert is_out_of_memory(error.value) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", too_much)
    message = refusal(tiny / "lm")
    assert message.startswith("loading the language model: out of memory (")
    assert "set model.dtype=bfloat16" in message


def test_B9_texts_that_do_not_fit_into_the_main_memory_end_in_one_line(cli, monkeypatch):
    monkeypatch.setattr(LanguageModel, "capture", too_much)
    monkeypatch.setattr("saematch.lm.source.self_test", lambda _: None)
    message, output = cli()
    assert "one text of" in message and "does not fit" in message
    assert "lower dataset.max_tokens" in message
    assert "Traceback" not in output.err


def test_B9_anything_else_that_does_not_fit_ends_in_one_line(cli, monkeypatch):
    monkeypatch.setattr("saematch.runs.stages.match_pairs", too_much)
    message, output = cli()
    assert message.startswith("saematch: matching and evaluating SAEs: out of memory (")
    assert "Traceback" not in output.err


class Payload:
    """Creates a file when a pickle of it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_B14_pickled_weights_are_never_read(folder, tmp_path, name):
    mark = tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    message = refusal(folder)
    assert "the only weights are pickled" in message
    assert "save_pretrained(FOLDER)" in message
    assert not mark.exists()


def test_B14_pickled_weights_next_to_safe_ones_are_ignored(folder, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    assert load(folder).n_layers == N_LAYERS
    assert not (tmp_path / "ran").exists()


def test_B14_an_adapter_is_not_taken_for_the_model(folder):
    (folder / "adapter_config.json").write_text("{}")
    assert "merge it into the model with peft's merge_and_unload" in refusal(folder)


def own_code(folder, mark, **settings):
    """Add code to a folder that leaves a mark if it runs."""
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    configure(folder, auto_map=auto_map, **settings)


@pytest.fixture
def no_terminal(monkeypatch):
    def ask(*_):
        raise AssertionError("the terminal was asked")

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("sys.stdin.readline", ask, raising=False)


@pytest.mark.usefixtures("no_terminal")
def test_C1_a_model_folder_with_its_own_code_is_refused(folder, tmp_path):
    own_code(folder, tmp_path / "ran", model_type="own")
    message = refusal(folder)
    assert "it has its own code (auto_map in its configuration)" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("no_terminal")
def test_C1_a_tokenizer_with_its_own_code_is_refused(folder, tmp_path):
    own_code(folder, tmp_path / "ran")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.T", None]}})
    )
    refusal(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("no_terminal")
def test_C1_of_a_known_type_the_code_of_transformers_is_run(folder, tiny, tmp_path):
    own_code(folder, tmp_path / "ran")
    generate = folder / "custom_generate"
    generate.mkdir()
    shutil.copy(folder / "own.py", generate / "generate.py")
    assert torch.equal(logits(load(folder)), logits(load(tiny / "lm")))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "no_such_type"},
        {"num_attention_heads": 3},
        {"hidden_size": "wide"},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    ],
)
def test_B5_a_configuration_that_makes_no_model_ends_in_one_line(folder, settings):
    configure(folder, **settings)
    assert refusal(folder).startswith(f"cannot load the language model '{folder}': ")
