"""Which place of a language model an SAE reads, told from the name of the hook."""

from __future__ import annotations

import logging
import re
from functools import cache
from typing import NamedTuple

from saematch.core.errors import InputError
from saematch.sae.params import SaeOrigin

log = logging.getLogger(__name__)

RESIDUAL = "resid_post"
TRANSCODER = "transcoder"
NORMALISED = "normalised"
SITES = {
    RESIDUAL: "the hidden state after a block",
    "resid_mid": "the hidden state between a block's attention and its MLP",
    "mlp_out": "what a block's MLP adds",
    "attn_out": "what a block's attention adds",
    "hook_z": "the outputs of a block's attention heads",
    TRANSCODER: "one place and writes another",
    NORMALISED: "hidden states brought to mean 0 and standard deviation 1, token by token",
}
"""What an SAE of each site reads."""
_BY_HOOK = {
    RESIDUAL: ("", "output", "hook_resid_post", "hook_out"),
    "resid_mid": ("hook_resid_mid",),
    "mlp_out": ("hook_mlp_out", "mlp", "mlp.output", "post_feedforward_layernorm.output",
                "mlp.hook_out", "ln2_post.hook_out"),
    "attn_out": ("hook_attn_out", "self_attn", "self_attn.output", "attn", "attention",
                 "attn.hook_out", "ln1_post.hook_out"),
    "hook_z": ("attn.hook_z", "self_attn.o_proj.input", "attn.o.hook_in"),
}  # fmt: skip
"""Names after the block's number: of TransformerLens 2, of Hugging Face, of TransformerLens 3."""
_BEFORE = ("hook_resid_pre", "input", "hook_in")
_HOOK = re.compile(r"(?:.*\.)?(?:blocks|layers|h)\.(\d+)(?:\.(.+))?")


class Hook(NamedTuple):
    """A place in a language model."""

    site: str | None
    """One of ``SITES``; None for a place that is none of them, such as an MLP's input."""
    layer: int


def read_hook(name: str) -> Hook:
    """Read a name as TransformerLens or Hugging Face give it: ``blocks.3.hook_resid_post``.

    ``hook_resid_pre``, in TransformerLens 3 ``hook_in``, is the hidden state after the block
    before. Raises ``InputError`` for what is before block 0, and for a name without a layer.
    """
    told = _HOOK.fullmatch(name)
    if told is None:
        if "embed" in name:
            raise InputError("it is the embedding, before block 0, for which no layer stands")
        raise InputError("the name holds no layer, as blocks.3.hook_resid_post does")
    layer, rest = int(told[1]), _after_number(name)
    if rest in _BEFORE:
        if layer == 0:
            raise InputError("it is the hidden state before block 0, for which no layer stands")
        return Hook(RESIDUAL, layer - 1)
    return Hook(next((site for site, names in _BY_HOOK.items() if rest in names), None), layer)


def _after_number(name: str) -> str:
    """Return what follows the block's number in a hook's name."""
    told = _HOOK.fullmatch(name)
    return (told[2] or "") if told else ""


def check_hook(where: str, name: str, layer: int, *, transcoder: bool = False) -> str:
    """Return the site of an SAE that reads ``name`` and was taken for ``layer``.

    Raises ``InputError``, beginning with ``where``, for another layer and for an unknown place.
    """
    try:
        hook = read_hook(name)
    except InputError as error:
        raise InputError(f"{where} reads {name}, but {error}") from error
    if hook.layer != layer:
        shifted = " (the hidden state after the block before: sae.shift=1)"
        before = shifted if _after_number(name) in _BEFORE else ""
        raise InputError(
            f"{where} reads {name}, which belongs to layer {hook.layer}"
            f"{before}, but it was taken for layer {layer}; give it the layer that it reads"
        )
    if transcoder:
        return TRANSCODER
    if hook.site is None:
        raise InputError(
            f"{where} reads {name}, which is none of the known sites {', '.join(SITES)}"
        )
    return hook.site


@cache
def warn_unstated(where: str) -> None:
    """Say once that an SAE is taken for one of hidden states, since nothing tells what it reads."""
    log.warning("%s does not say what it reads: taken for %s", where, RESIDUAL)


def site_refusal(source: SaeOrigin, target: SaeOrigin) -> str | None:
    """Return why two SAEs cannot be matched if they read different sites, else None."""
    if source.site == target.site:
        return None
    return (
        f"the SAEs read different places of the model (source: {source.site}, target: "
        f"{target.site}), so they cannot be matched: choose SAEs of one site"
    )


def is_skippable(origin: SaeOrigin) -> bool:
    """Whether the SAE's features stand for the hidden state between two blocks."""
    return origin.site == RESIDUAL


def skipping_refusal(origin: SaeOrigin) -> str | None:
    """Return why an SAE cannot be applied to hidden states between blocks, None if it can.

    It can be matched by weights all the same.
    """
    if is_skippable(origin):
        return None
    return (
        f"SAE {origin.where} reads {SITES[origin.site]} (site "
        f"{origin.site}), so its features cannot stand for the hidden state between two "
        "blocks, and no layer can be left out with them: match it by weights alone with "
        "evaluations=[]"
    )
