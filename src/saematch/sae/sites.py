"""The site that an SAE reads in a language model, derived from the name of its hook."""

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
    "mlp_out": "the output of a block's MLP",
    "attn_out": "the output of a block's attention",
    "hook_z": "the outputs of a block's attention heads",
    TRANSCODER: "one place and writes another",
    NORMALISED: "hidden states brought to mean 0 and standard deviation 1, token by token",
}
"""Description of the input of an SAE, by site."""
_BY_HOOK = {
    RESIDUAL: ("", "output", "hook_resid_post", "hook_out"),
    "resid_mid": ("hook_resid_mid",),
    "mlp_out": ("hook_mlp_out", "mlp", "mlp.output", "post_feedforward_layernorm.output",
                "mlp.hook_out", "ln2_post.hook_out"),
    "attn_out": ("hook_attn_out", "self_attn", "self_attn.output", "attn", "attention",
                 "attn.hook_out", "ln1_post.hook_out"),
    "hook_z": ("attn.hook_z", "self_attn.o_proj.input", "attn.o.hook_in"),
}  # fmt: skip
"""Hook names after the block's number in TransformerLens 2, Hugging Face and TransformerLens 3."""
_BEFORE = ("hook_resid_pre", "input", "hook_in")
_HOOK = re.compile(r"(?:.*\.)?(?:blocks|layers|h)\.(\d+)(?:\.(.+))?")


class Hook(NamedTuple):
    """A place in a language model."""

    site: str | None
    """One of ``SITES``; None for any other place, such as an MLP's input."""
    layer: int


def read_hook(name: str) -> Hook:
    """Return the place that a hook's name in TransformerLens or Hugging Face refers to.

    ``hook_resid_pre`` (``hook_in`` in TransformerLens 3) is the hidden state after the previous
    block. Raises ``InputError`` for a place before block 0 and for a name without a layer.
    """
    parts = _HOOK.fullmatch(name)
    if parts is None:
        if "embed" in name:
            raise InputError("it is the embedding, which comes before block 0 and has no layer")
        raise InputError("the name contains no layer (example: blocks.3.hook_resid_post)")
    layer, rest = int(parts[1]), _after_number(name)
    if rest in _BEFORE:
        if layer == 0:
            raise InputError("it is the hidden state before block 0, which has no layer")
        return Hook(RESIDUAL, layer - 1)
    return Hook(next((site for site, names in _BY_HOOK.items() if rest in names), None), layer)


def _after_number(name: str) -> str:
    """Return the part of a hook's name after the block's number."""
    parts = _HOOK.fullmatch(name)
    return (parts[2] or "") if parts else ""


def check_hook(where: str, name: str, layer: int, *, transcoder: bool = False) -> str:
    """Return the site of an SAE that reads the hook ``name`` and was loaded as ``layer``.

    Raises ``InputError``, starting with ``where``, if the hook is of another layer or unknown.
    """
    try:
        hook = read_hook(name)
    except InputError as error:
        raise InputError(f"{where} reads {name}, but {error}") from error
    if hook.layer != layer:
        shifted = " (the hidden state after the previous block: set sae.shift=1)"
        before = shifted if _after_number(name) in _BEFORE else ""
        raise InputError(
            f"{where} reads {name}, which belongs to layer {hook.layer}"
            f"{before}, but it was loaded as layer {layer!r}; set the layer that it reads"
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
    """Warn once that an SAE's configuration names no hook, so its site is assumed."""
    log.warning("%s: the configuration names no hook point; assuming %s", where, RESIDUAL)


def site_refusal(source: SaeOrigin, target: SaeOrigin) -> str | None:
    """Return why two SAEs of different sites cannot be matched; None if the sites are equal."""
    if source.site == target.site:
        return None
    return (
        f"the SAEs read different places of the model (source: {source.site}, target: "
        f"{target.site}), so they cannot be matched: choose SAEs of one site"
    )


def model_refusal(subject: str, source: SaeOrigin, target: SaeOrigin) -> str | None:
    """Return that ``subject`` needs SAEs of one language model; None if these have one."""
    names = source.model_name, target.model_name
    if not all(names) or names[0] == names[1]:
        return None
    return f"{subject} needs SAEs of one language model, not of {' and '.join(names)}"


def is_skippable(origin: SaeOrigin) -> bool:
    """Return whether the SAE reconstructs the hidden state between two blocks."""
    return origin.site == RESIDUAL


def skipping_refusal(origin: SaeOrigin) -> str | None:
    """Return why an SAE cannot be applied to hidden states between blocks; None if it can.

    Such an SAE can still be matched by weights.
    """
    if is_skippable(origin):
        return None
    return (
        f"SAE {origin.where} reads {SITES[origin.site]} (site "
        f"{origin.site}), so its features cannot replace the hidden state between two blocks, and "
        "no layer can be skipped with them: match it by weights alone with evaluations=[]"
    )
