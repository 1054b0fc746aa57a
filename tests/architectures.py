"""Small language models of several architectures."""

import torch
import transformers

from saematch.lm.hooks import LanguageModel

SHARED = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
GROUPED = {**SHARED, "intermediate_size": 64, "num_key_value_heads": 2}
ROPE = {"rope_type": "default"}
WINDOWS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
ARCHITECTURES = {
    "Llama": GROUPED,
    "GPT2": {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 32,
             "bos_token_id": 0, "eos_token_id": 0},
    "GPTNeoX": {**SHARED, "intermediate_size": 64},
    "Gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 4},
    "Qwen2": GROUPED,
    "Gemma3Text": {**GROUPED, "head_dim": 8, "sliding_window": 4, "layer_types": WINDOWS,
                   "rope_parameters": {"sliding_attention": {**ROPE, "rope_theta": 10.0},
                                       "full_attention": {**ROPE, "rope_theta": 1e4}}},
    "Gemma3": {"text_config": {**GROUPED, "head_dim": 8, "sliding_window": 4},
               "vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4,
                                 "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
               "mm_tokens_per_image": 4, "image_token_index": 1},
    "Qwen3": {**GROUPED, "head_dim": 8},
    "OPT": {**SHARED, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "Bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 4, "n_head": 4},
    "OpenAIGPT": {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 32},
    "Rwkv": {"vocab_size": 64, "hidden_size": 32, "attention_hidden_size": 32,
             "num_hidden_layers": 4, "rescale_every": 2},
}  # fmt: skip


def build(architecture: str) -> LanguageModel:
    """Return a language model of this architecture with random weights."""
    names = {"GPT2": "GPT2LMHeadModel", "OpenAIGPT": "OpenAIGPTLMHeadModel",
             "Gemma3Text": "Gemma3ForCausalLM",
             "Gemma3": "Gemma3ForConditionalGeneration"}  # fmt: skip
    config = getattr(transformers, f"{architecture}Config")(**ARCHITECTURES[architecture])
    torch.manual_seed(0)
    model = getattr(transformers, names.get(architecture, f"{architecture}ForCausalLM"))(config)
    return LanguageModel(model.eval().requires_grad_(False), None, architecture)
