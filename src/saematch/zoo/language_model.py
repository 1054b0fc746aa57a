"""The embedded language model: an 8-block Llama with d_model 128 and its own BPE tokenizer."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saematch.core.files import replacing, replacing_folder
from saematch.core.progress import progress

log = logging.getLogger(__name__)

BOS, PAD = "<|bos|>", "<|pad|>"


@dataclass(frozen=True)
class LmRecipe:
    """All settings that determine the embedded language model."""

    vocab_size: int = 4096
    d_model: int = 128
    d_mlp: int = 384
    n_layers: int = 8
    n_heads: int = 4
    context: int = 256
    """Number of tokens in a training sequence."""
    batch: int = 8
    """Number of sequences in a step."""
    steps: int = 4000
    lr_matrices: float = 0.02
    """Learning rate of Muon, which trains the weight matrices of the blocks."""
    lr_rest: float = 3e-3
    """Learning rate of AdamW, which trains the embedding and the norms."""
    warm_up: int = 100
    decay_from: float = 0.5
    """Share of the steps after which the learning rate falls linearly to zero."""
    seed: int = 0


def train_tokenizer(corpus: Path, out: Path, vocab_size: int) -> None:
    """Train a byte-level BPE tokenizer on ``train.jsonl`` and save it with BOS and padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, PAD], initial_alphabet=alphabet
    )
    rows = (json.loads(line)["text"] for line in (corpus / "train.jsonl").open())
    tokenizer.train_from_iterator(rows, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    with replacing_folder(out) as part:
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=BOS, pad_token=PAD, model_max_length=1024
        ).save_pretrained(part)


def tokenise(corpus: Path, tokenizer: Path, out: Path) -> None:
    """Write the training tokens as one uint16 array, with BOS before each document."""
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer).backend_tokenizer
    rows = [json.loads(line)["text"] for line in (corpus / "train.jsonl").open()]
    parts = [
        np.array(encoding.ids, dtype=np.uint16)
        for start in range(0, len(rows), 500)
        for encoding in encode.encode_batch(rows[start : start + 500])
    ]
    with replacing(out) as part, part.open("wb") as file:
        np.save(file, np.concatenate(parts))


def build_model(recipe: LmRecipe) -> torch.nn.Module:
    """Return the untrained model, initialised from the recipe's seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=recipe.d_model,
            intermediate_size=recipe.d_mlp,
            num_hidden_layers=recipe.n_layers,
            num_attention_heads=recipe.n_heads,
            num_key_value_heads=recipe.n_heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=1,
        )
    )


def train_language_model(recipe: LmRecipe, tokens: Path, out: Path, state: Path) -> None:
    """Train the model and save it in bfloat16; continues an interrupted training from ``state``."""
    stream = np.load(tokens, mmap_mode="r")
    model: Any = build_model(recipe)
    blocks = [p for n, p in model.named_parameters() if "layers" in n and p.ndim == 2]
    inside = {id(p) for p in blocks}
    rest = [p for p in model.parameters() if id(p) not in inside]
    optimizers = [
        torch.optim.Muon(blocks, lr=recipe.lr_matrices, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=recipe.lr_rest, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda s: _schedule(s, recipe)) for o in optimizers
    ]
    parts: list[Any] = [*optimizers, *schedules]
    first = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        first = saved["step"]
        model.load_state_dict(saved["model"])
        for part, values in zip(parts, saved["parts"], strict=True):
            part.load_state_dict(values)
    smooth = math.nan
    with progress("language model", recipe.steps - first, "step") as bar:
        for step in range(first, recipe.steps):
            loss = _step_loss(model, stream, recipe, step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(rest, 1.0)
            for part in parts:
                part.step()
            model.zero_grad(set_to_none=True)
            smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
            bar.advance()
            bar.remark(f"loss {smooth:.3f}")
            if (step + 1) % 250 == 0:
                log.info("step %d: training loss %.3f nats", step + 1, smooth)
                part_states = [part.state_dict() for part in parts]
                saved = {"step": step + 1, "model": model.state_dict(), "parts": part_states}
                with replacing(state) as path:
                    torch.save(saved, path)
    with replacing_folder(out) as folder:
        model.to(torch.bfloat16).save_pretrained(folder)


def _step_loss(
    model: torch.nn.Module, stream: np.ndarray, recipe: LmRecipe, step: int
) -> torch.Tensor:
    """Return the next-token loss on the random windows of a step, which a restart does not
    change."""
    rng = np.random.default_rng((recipe.seed, step))
    starts = rng.integers(0, len(stream) - recipe.context, recipe.batch)
    windows = np.stack([stream[s : s + recipe.context] for s in starts]).astype(np.int64)
    windows[:, 0] = 0  # every sequence begins with BOS, as in evaluation
    ids = torch.from_numpy(windows)
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _schedule(step: int, recipe: LmRecipe) -> float:
    """Return the factor on the learning rate: warm-up, constant, then linear to zero."""
    left = (recipe.steps - step) / (recipe.steps * (1 - recipe.decay_from))
    return min(1.0, (step + 1) / recipe.warm_up, max(left, 1e-3))
