"""Exact Jacobians of the blocks between two layers, at single tokens.

``J_t = d resid_post[target, t] / d resid_post[source, t]``: the token ``t`` is the same on both
sides, and the source's hidden states at all other tokens stay unchanged. Entry ``[k, m]`` is the
derivative of output ``k`` by input ``m``, so ``J_t v`` is the first-order change of the target for
a change ``v`` of the source.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from saematch.core.errors import InputError
from saematch.lm.edits import EditRunner, Edits

ROWS = 512
"""Number of token-rows of a backward pass. A few tokens run as many copies each, one for each of
several outputs, since a pass over few rows takes almost as long as one over ``ROWS``."""


@dataclass(frozen=True)
class JacobianSums:
    """Sums over tokens."""

    J: Float64[Tensor, "d_model d_model"]
    """Sum of ``J_t``."""
    squares: float
    """Sum of ``||J_t||_F^2``."""


def jacobian_sums(
    runner: EditRunner,
    source: int,
    target: int,
    texts: Int64[Tensor, " n"],
    positions: Int64[Tensor, " n"],
) -> JacobianSums:
    """Return the sums of the Jacobians at these tokens, by reverse-mode differentiation.

    Each token costs ``d_model`` backward passes of one token through the blocks. Raises
    ``InputError`` if the code of the model cannot be differentiated.
    """
    d_model = runner.lm.d_model
    J = torch.zeros(d_model, d_model, dtype=torch.float64, device=texts.device)
    squares = 0.0
    for start in range(0, len(texts), ROWS):
        chosen = torch.arange(start, min(start + ROWS, len(texts)), device=texts.device)
        n, n_copies = len(chosen), min(d_model, ROWS // len(chosen))
        rows = chosen.repeat_interleave(n_copies)
        states = runner.hidden[source][texts[rows], positions[rows]].requires_grad_()
        output = runner.differentiable(source, target, Edits(texts[rows], positions[rows], states))
        if not output.requires_grad:
            raise InputError(
                f"{runner.lm.name}: its blocks cannot be differentiated, so no vectors can be "
                "transported: leave out arms with transported=true"
            )
        for outputs in torch.arange(d_model, device=texts.device).split(n_copies):
            ones = torch.zeros_like(output).view(n, n_copies, d_model)
            ones[:, outputs - outputs[0], outputs] = 1
            (gradients,) = torch.autograd.grad(
                output, states, ones.view_as(output), retain_graph=True
            )
            of_outputs = gradients.view(n, n_copies, d_model)[:, : len(outputs)].double()
            J[outputs] += of_outputs.sum(dim=0)
            squares += float(of_outputs.square().sum())
    return JacobianSums(J, squares)
