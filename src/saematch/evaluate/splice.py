"""Skip layers: replace a hidden state by what the features of an earlier layer say it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey
from saematch.evaluate.counting import MatchedPair, count_features
from saematch.lm.hooks import LanguageModel
from saematch.matching.arm import DECODINGS
from saematch.matching.transport import transport
from saematch.sae.activations import SparseFeatures, decode, encode
from saematch.sae.folding import fold_scale
from saematch.sae.params import SaeOrigin
from saematch.sae.suites import Saes, SaeShelf
from saematch.texts.batch_work import Kept
from saematch.texts.tokens import TokenBatch

MATCHLESS = ("reconstruct_previous", "reconstruct_current", "drop")
"""Strategies that use no match (paper, section 5.5): SAE_t's reconstruction of ``x_t``,
SAE_{t+1}'s of the true ``x_{t+1}``, and ``x_t`` itself."""


class Splice(NamedTuple):
    """One change of the model: skip blocks ``t+1`` to ``u`` and replace the output of ``u``.

    At BOS and other special tokens the hidden state keeps its true value. Equal splices are the
    same change: it is evaluated once, even if several arms and suites ask for it.
    """

    strategy: str
    pair: Pair
    match: str = ""
    """The match's hash; empty where none is used."""
    quantile: float | None = None
    """Share of features, those of the least squared error, that go over to the target's
    decoder while the others keep their own (paper, eq. 6). None: all that have a partner go over,
    the others are lost."""

    @property
    def name(self) -> str:
        """The splice in the name of a tensor."""
        return "|".join(
            map(
                str,
                (self.strategy, *self.pair.source, *self.pair.target, self.match, self.quantile),
            )
        )


@dataclass(frozen=True)
class SplicePlan:
    """Everything that one pass over the texts evaluates."""

    saes: Saes
    """Each SAE once."""
    twins: dict[SaeKey, SaeKey]
    """For every SAE of the run, the one of ``saes`` that it is: sets may share SAEs."""
    matched: dict[MatchedPair, Match]
    """Matches whose features are counted together."""
    splices: dict[Splice, Match | None]
    """Changes of the model; with each, the match of the features that go over."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Label of each suite's language model; suites that are absent have the label ``""``."""
    model: str = ""
    """Label of the model that runs on the texts and that splices change."""
    others: Mapping[str, LanguageModel] = field(default_factory=dict)
    """Models that read the same texts for pairs of SAEs of two models, by label."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose hidden states are read."""
        ends = {key.layer for splice in self.splices for key in splice.pair}
        return tuple(sorted(ends | set(self.layers_of(self.model))))

    def layers_of(self, model: str) -> tuple[int, ...]:
        """Return the layers of the SAEs of one model."""
        return tuple(sorted({key.layer for key in self.saes if self.model_of(key) == model}))

    def model_of(self, key: SaeKey) -> str:
        """Return the label of an SAE's language model."""
        return self.models.get(key.suite, "")

    @property
    def labels(self) -> list[str]:
        """Labels of the models of the plan's SAEs, in order."""
        return sorted(set(map(self.model_of, self.saes)))

    def parts(self) -> list[SplicePlan]:
        """Return plans whose SAEs fit into memory together; everything is in one of them.

        The SAEs of a plan are of one language model, or of the two models of a pair. They take
        pairs in order.
        """
        shelf = SaeShelf.of(self.saes)
        parts = []
        for models, together in self._together().items():
            for group in shelf.parts(together):
                some = shelf.only([key for key in shelf if key in group])
                parts.append(replace(self, saes=some, matched={}, splices={}, model=models[0]))
        for matched_pair, match in self.matched.items():
            part = next(part for part in parts if part._covers(matched_pair.pair))
            part.matched[matched_pair] = match
        for splice, match in self.splices.items():
            part = next(part for part in parts if part._runs(splice.pair))
            part.splices[splice] = match
        return parts

    def _together(self) -> dict[tuple[str, ...], list[set[SaeKey]]]:
        """Return the SAEs that are needed together, by the models that a pass needs for them."""
        together: dict[tuple[str, ...], list[set[SaeKey]]] = {}
        for matched_pair in self.matched:
            keys = set(self.own(matched_pair.pair))
            models = tuple(sorted(set(map(self.model_of, keys))))
            together.setdefault(models, []).append(keys)
        spanned = {key for models, of in together.items() if models[1:] for key in set().union(*of)}
        for key in self.saes:  # some are in no pair
            if key not in spanned:
                together.setdefault((self.model_of(key),), []).append({key})
        return together

    def _covers(self, pair: Pair) -> bool:
        """Whether the plan has both SAEs of a pair."""
        return set(self.own(pair)) <= self.saes.keys()

    def _runs(self, pair: Pair) -> bool:
        """Whether the plan's model is the pair's; and has both SAEs, or layers if no SAE counts."""
        if pair.source in self.twins:
            return self.model_of(pair.source) == self.model and self._covers(pair)
        here = pair.source.suite == labelled("", self.model)
        return here and {key.layer for key in pair} <= set(self.layers)

    def counts(self, pair: Pair) -> bool:
        """Whether features of both SAEs of a pair are counted together."""
        if not set(pair) <= self.twins.keys():
            return False
        return self.own(pair) in {matched_pair.pair for matched_pair in self.matched}

    def own(self, pair: Pair) -> Pair:
        """Return the same two SAEs under the keys that stand for them."""
        return Pair(self.twins[pair.source], self.twins[pair.target])

    def matched_pair(self, pair: Pair, match: str) -> MatchedPair:
        """Return what a match, given by its hash, is counted as."""
        return MatchedPair(self.own(pair), match)

    def origins(self) -> dict[SaeKey, SaeOrigin]:
        """Return where each SAE came from, without loading it."""
        return {key: known.origin for key, known in SaeShelf.of(self.saes).facts.items()}

    def to(self, device: torch.device) -> SplicePlan:
        """Return the plan with its SAEs, and the models besides the first one, on a device."""
        others = {
            label: other if other.is_dispatched else other.to(device)
            for label, other in self.others.items()
        }
        saes = {key: sae.to(device) for key, sae in self.saes.items()}
        return replace(self, saes=saes, others=others)

    def __call__(
        self, lm: LanguageModel, batch: TokenBatch, recorders: Collection[str]
    ) -> dict[str, Kept]:
        """Evaluate one batch."""
        return dict.fromkeys(recorders, evaluate_batch(self, lm, batch))

    def join(self, recorder: str, first: Kept, second: Kept, n_texts: int) -> Kept:
        """Return the sums of both halves: their first axis is the text."""
        return {name: torch.cat([sums, second[name]]) for name, sums in first.items()}


@torch.inference_mode()
def evaluate_batch(plan: SplicePlan, lm: LanguageModel, batch: TokenBatch) -> dict[str, Tensor]:
    """Return sums over the tokens of each text: one original forward serves everything.

    Each tensor's first axis is the text. ``fired`` and ``both`` count tokens on which a feature,
    or a feature and any of its partners, are active. Matches with several entries in a row also
    have ``entries``, tokens on which both features of an entry are active, and ``partners``, tokens
    on which any partner of a source feature is active. ``error`` is replaced minus true hidden
    state. ``lm`` is the plan's ``model``; names of sums of another model end in its label.
    """
    hidden, final = lm.capture(batch.ids, plan.layers)
    counted, predicting = _by_text(batch.counts), _by_text(batch.predicts)
    targets = batch.ids.roll(-1, dims=1)[batch.predicts]
    losses = lm.token_losses(final[batch.predicts], targets)
    sums = {labelled("loss_original", plan.model): predicting @ losses.double()}
    x = {layer: hidden[layer][batch.counts].float() for layer in plan.layers}
    of_models = {plan.model: x}
    for label, other in plan.others.items():
        states = other.states(batch.ids, plan.layers_of(label))
        of_models[label] = {n: of_layer[batch.counts].float() for n, of_layer in states.items()}
    for label, of_model in of_models.items():
        sums[labelled("n_tokens", label)] = batch.counts.sum(dim=1)
        sums[labelled("n_special", label)] = batch.n_special
        sums[labelled("n_targets", label)] = batch.predicts.sum(dim=1)
        for layer, of_layer in of_model.items():
            square = of_layer.double().square().sum(dim=1)
            sums[labelled(f"x_sum|{layer}", label)] = counted @ of_layer.double()
            sums[labelled(f"x_square|{layer}", label)] = counted @ square
            sums[labelled(f"x_norm|{layer}", label)] = counted @ square.sqrt()
    with torch.autocast(batch.ids.device.type, enabled=False):
        active = {
            key: encode(sae, of_models[plan.model_of(key)][key.layer])
            for key, sae in plan.saes.items()
        }
        sums |= count_features(plan.matched, active, batch.counts)
    for splice, match in plan.splices.items():
        with torch.autocast(batch.ids.device.type, enabled=False):
            replacement = _replacement(plan, splice, match, x, active)
        target = splice.pair.target.layer
        spliced = hidden[target].clone()
        spliced[batch.counts] = replacement.to(spliced.dtype)
        changed = lm.continue_from(target, spliced, batch.ids)
        losses = lm.token_losses(changed[batch.predicts], targets)
        error = (replacement - x[target]).double()
        sums[f"loss|{splice.name}"] = predicting @ losses.double()
        sums[f"error_sum|{splice.name}"] = counted @ error
        sums[f"error_square|{splice.name}"] = counted @ error.square().sum(dim=1)
    return sums


def labelled(name: str, model: str) -> str:
    """Return the name of a sum of one language model, given by its label."""
    return f"{name}|{model}" if model else name


def _by_text(positions: Bool[Tensor, "batch seq"]) -> Float64[Tensor, "batch n"]:
    """Return the matrix that adds up the chosen positions of each text."""
    text = torch.nonzero(positions)[:, 0]
    each = torch.arange(len(positions), device=text.device)
    return (each[:, None] == text).double()


def _replacement(
    plan: SplicePlan,
    splice: Splice,
    match: Match | None,
    x: dict[int, Float[Tensor, "n_tokens d_model"]],
    active: dict[SaeKey, SparseFeatures],
) -> Float[Tensor, "n_tokens d_model"]:
    """Return what stands in place of the target's hidden states."""
    pair = splice.pair
    if splice.strategy == "drop":
        return x[pair.source.layer]
    if splice.strategy.startswith("reconstruct"):
        key = plan.twins[pair.source]
        return decode(plan.saes[key], active[key])
    assert match is not None
    key = plan.twins[pair.source]
    source, target = plan.saes[key], plan.saes[plan.twins[pair.target]]
    by = DECODINGS[splice.strategy]
    scales = fold_scale(source, by), fold_scale(target, by)
    replaced = decode(target, transport(active[key], match, *scales))
    if splice.quantile is None:
        return replaced
    own = torch.ones(source.n_features, dtype=torch.bool, device=replaced.device)
    own[match.rows.to(own.device)] = False
    return replaced + decode(source, active[key].keep(own)) - source.b_dec


def canonical(plan: SplicePlan, splice: Splice, match: Match | None) -> Splice:
    """Return the splice without what makes no difference to it, so that equal ones are equal."""
    pair = splice.pair
    if splice.strategy == "drop":
        nobody = labelled("", plan.model_of(pair.target))
        return Splice("drop", Pair(*(SaeKey(nobody, key.layer) for key in pair)))
    if splice.strategy == "reconstruct_current":
        return Splice("reconstruct", plan.own(Pair(pair.target, pair.target)))
    if splice.strategy == "reconstruct_previous":
        return Splice("reconstruct", plan.own(pair))
    assert match is not None
    splice = splice._replace(pair=plan.own(pair))
    if splice.quantile == 0:
        return splice._replace(strategy="permute", match="")
    if splice.quantile == 1 and len(match.matched) == match.n_source:
        return splice._replace(quantile=None)
    return splice
