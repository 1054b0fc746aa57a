"""A short test that hidden states of a loaded language model can be read and replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saematch.core.errors import InputError
from saematch.core.memory import is_out_of_memory
from saematch.lm.hooks import LanguageModel, hidden_of

N_TOKENS = 8
"""Number of tokens in each of the two sequences."""
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Largest difference of two logits that count as equal, in standard deviations of the logits."""
MODEL_ERRORS = (TypeError, ValueError, LookupError, AttributeError, RuntimeError, AssertionError)
"""Errors that the code of a model raises if it is used in a way that it does not support."""


def self_test(lm: LanguageModel) -> None:
    """Refuse a model on which evaluations would be wrong.

    On two sequences of eight tokens that differ in their second half, these properties must hold:

    - every ordinary token id of the tokenizer has a row in the embedding;
    - the logits are finite;
    - the logits of the first half do not depend on the second half;
    - every block runs once and returns ``[batch, seq, d_model]``;
    - continuing from the true hidden states of a middle block and of the second-last block
      reproduces the model's own logits (see ``TOLERANCE``);
    - continuing from another hidden state does not.

    Sets ``lm.runs_earlier_blocks`` if continuing is correct only with it. It takes two to three
    forward passes of the model. Raises ``InputError``, which names the property.
    """
    _check_tokenizer(lm)
    ids = _sequences(lm)
    with torch.no_grad():
        with _property(lm, "running on token ids"):
            logits, shapes = _run(lm, ids)
        _check_logits(lm, logits)
        _check_shapes(lm, shapes, (*ids.shape, lm.d_model))
        with _property(lm, "reading hidden states"):
            states, final = lm.capture(ids, tuple(range(lm.n_layers)))
        same = _comparison(lm, logits)
        with _property(lm, "applying the head to the final hidden state"):
            if not same(lm.logits(final)):
                raise InputError("the logits differ from the model's own")
        _check_continuing(lm, states, ids, same)


def _check_tokenizer(lm: LanguageModel) -> None:
    """Refuse ordinary tokens without an embedding.

    Tokenizers of some models have an added token without an embedding row (Gemma 3's token for
    images). ``LanguageModel.refuse_ids`` refuses texts with such a token.
    """
    if lm.tokenizer is not None:
        added = added_tokens(lm.tokenizer)
        ordinary = (number for number in lm.tokenizer.get_vocab().values() if number not in added)
        lm.refuse_ids(max(ordinary, default=0), "the tokenizer")
    if lm.bos_id is not None:
        lm.refuse_ids(lm.bos_id, "model.bos")


def _sequences(lm: LanguageModel) -> Int64[Tensor, "two seq"]:
    """Return two sequences of ordinary tokens that differ in their second half.

    Tokens for images or sounds are not ordinary: a model replaces their embeddings.
    """
    settings = lm.model.config.to_dict().items()
    special = {value for name, value in settings if name.endswith(("_token_id", "_token_index"))
               and isinstance(value, int)}  # fmt: skip
    if lm.tokenizer is not None:
        special |= {*lm.tokenizer.all_special_ids, *added_tokens(lm.tokenizer)}
    ordinary = [n for n in range(lm.n_embeddings) if n not in special] or range(lm.n_embeddings)
    length = min(N_TOKENS, lm.max_positions or N_TOKENS)
    half = length // 2
    numbers = torch.linspace(0, len(ordinary) - 1, length + (length - half) + 2).long()[1:-1]
    chosen = torch.tensor(ordinary)[numbers]
    first, second = chosen[:length], torch.cat([chosen[:half], chosen[length:]])
    device = lm.model.get_input_embeddings().weight.device
    return torch.stack([first, second]).to("cpu" if device.type == "meta" else device)


def _run(
    lm: LanguageModel, ids: Int64[Tensor, "two seq"]
) -> tuple[Float[Tensor, "two seq vocab"], list[tuple[int, ...]]]:
    """Return the model's own logits in float32, and the shape that each block returns."""
    shapes: list[tuple[int, ...]] = []
    with ExitStack() as stack:
        for block in lm.blocks:
            hook = block.register_forward_hook(
                lambda _module, _args, output: shapes.append(tuple(hidden_of(output).shape))
            )
            stack.callback(hook.remove)
        logits = lm.model(input_ids=ids, use_cache=False).logits
    return logits.to(ids.device).float(), shapes


def _check_logits(lm: LanguageModel, logits: Float[Tensor, "two seq vocab"]) -> None:
    if logits.isnan().any() or logits.isposinf().any():
        raise InputError(
            f"{lm.name}: the logits are not finite in {lm.model.dtype}: set model.dtype=bfloat16 "
            "or float32; if that does not help, the weights are damaged"
        )
    before = logits[:, : logits.shape[1] // 2]
    if not _comparison(lm, logits)(before[1], before[0]):
        raise InputError(
            f"{lm.name}: the logits of a token depend on later tokens, so it is not a causal "
            "language model, and padding would change its hidden states: choose a decoder-only "
            "model, or set is_decoder in its config.json if it was trained as one"
        )


def _check_shapes(
    lm: LanguageModel, shapes: list[tuple[int, ...]], expected: tuple[int, int, int]
) -> None:
    if len(shapes) != lm.n_layers:
        raise InputError(
            f"{lm.name} ({type(lm.model).__name__}): its {lm.n_layers} blocks run {len(shapes)} "
            "times in one pass: models that repeat or skip blocks are not supported"
        )
    for layer, shape in enumerate(shapes):
        if shape != expected:
            raise InputError(
                f"{lm.name} ({type(lm.model).__name__}): block {layer} returns hidden states of "
                f"shape {list(shape)}, not [batch, seq, d_model] = {list(expected)}: models "
                "with several residual streams, or with the tokens first, are not supported"
            )


def _check_continuing(
    lm: LanguageModel,
    states: dict[int, Tensor],
    ids: Int64[Tensor, "two seq"],
    same: Callable[..., bool],
) -> None:
    """Check continuing without the earlier blocks, then, if that fails, with them."""
    layers = sorted({(lm.n_layers - 1) // 2, max(lm.n_layers - 2, 0)})

    def reproduced() -> bool:
        return all(same(lm.logits(lm.continue_from(layer, states[layer], ids))) for layer in layers)

    try:
        lm.runs_earlier_blocks = not reproduced()
    except MODEL_ERRORS:
        lm.runs_earlier_blocks = True
    with _property(lm, f"continuing from the true hidden state of block {layers}"):
        if lm.runs_earlier_blocks and not reproduced():
            raise InputError("the logits differ from the model's own")
        changed = lm.continue_from(layers[-1], -states[layers[-1]], ids)
        if same(lm.logits(changed)):
            raise InputError("another hidden state does not change the logits")


def _comparison(lm: LanguageModel, reference: Tensor) -> Callable[..., bool]:
    """Return a function that compares logits with ``reference`` or with other logits."""
    counts = reference > -1e4  # models mask unused rows of the vocabulary with very low logits
    tolerance = TOLERANCE[lm.model.dtype] * float(reference[counts].std())

    def same(logits: Tensor, expected: Tensor = reference) -> bool:
        difference = (logits.float() - expected)[expected > -1e4].abs()
        return bool(difference.max() <= tolerance)  # False for NaN

    return same


@contextmanager
def _property(lm: LanguageModel, name: str) -> Iterator[None]:
    """Raise ``InputError`` with the reason if the code of the model fails."""
    try:
        yield
    except MODEL_ERRORS as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), "") or "no reason given"
        raise InputError(
            f"{lm.name} ({type(lm.model).__name__}) cannot be used, since {name} fails: "
            f"{type(error).__name__}: {reason}. Models with one residual stream of decoder blocks "
            "are supported"
        ) from error


def added_tokens(tokenizer: Any) -> Mapping[int, Any]:
    """Return the tokens that were added to the vocabulary, by id.

    Mistral's own tokenizer class has a method of that name; for it, the result is empty.
    """
    tokens = getattr(tokenizer, "added_tokens_decoder", {})
    return tokens if isinstance(tokens, Mapping) else {}
