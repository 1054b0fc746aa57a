"""What a source feature writes into the encoder of a target feature."""

from __future__ import annotations

from torch.nn.functional import normalize

from saematch.core.specs import spec
from saematch.matching.objectives.factors import Factors
from saematch.matching.objectives.parts import different_sizes, pair_name
from saematch.sae.folding import fold_scale
from saematch.sae.params import SaeParams
from saematch.sae.sites import model_refusal
from saematch.sae.suites import SaeFacts


@spec("objective")
class ReadWrite:
    """The rise of a target's pre-activation for one unit of a source's direction.

    ``score(i, j) = d_i · w_enc_j / threshold_j`` with the unit decoder vector ``d_i`` of the source
    and the encoder vector of the target, in units of the target's threshold. This definition is our
    own. A stand-in replaces missing thresholds. The score is the same in every fold.

    The score is exact to first order if no block in between reacts to the source. It is wrong where
    a block in between removes or rotates what the source writes. Targets with long encoder vectors
    or low thresholds have large scores with many sources, so the largest score of a source is often
    wrong where a one-to-one match is right. The objective is directed: it refuses a target that
    comes before its source, and SAEs of two language models.
    """

    def factors(self, source: SaeParams, target: SaeParams) -> Factors:
        """Return unit decoder vectors of the source, scaled encoder vectors of the target: float32.

        Raises ``InputError`` if the target has neither positive thresholds nor a stand-in. A run
        checks this before work begins, since it folds every SAE by its thresholds.
        """
        written = normalize(source.W_dec.float(), dim=1)
        read = target.W_enc.T.float() / fold_scale(target, "threshold").float()[:, None]
        return Factors(written, read, pair_name(source, target))

    def refusal(self, source: SaeFacts, target: SaeFacts) -> str | None:
        """Refuse SAEs of different sizes or language models, and targets before their source."""
        return writing_refusal("read-write score", source, target)


def writing_refusal(score: str, source: SaeFacts, target: SaeFacts) -> str | None:
    """Return why the source cannot write to the target; None if it can. ``score`` is a name."""
    other_model = model_refusal(f"the {score}", source.origin, target.origin)
    if other_model is not None:
        return other_model
    if target.origin.layer < source.origin.layer:
        return (
            f"layer {source.origin.layer} writes nothing to layer {target.origin.layer}, which "
            f"comes before it, so there is no {score}"
        )
    return different_sizes(source, target)
