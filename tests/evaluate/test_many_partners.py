"""Matches of several weighted partners, through the code that evaluates every match."""

from typing import ClassVar

import pytest
import torch
from safetensors import safe_open

from conftest import N_LAYERS, TEXTS, random_sae
from evaluate.test_splice import check_halves, plain
from evaluations import recorded, subject_of, tables_of
from matches import dense, halves, of_dense, permutation, soft
from saematch.core.match import Match
from saematch.core.pairs import Pair, SaeKey, pair_of
from saematch.core.specs import spec
from saematch.evaluate.co_activation import CoActivation
from saematch.evaluate.match_tables import MatchTables
from saematch.evaluate.skipping import Skipping
from saematch.evaluate.weights import (
    FoldedPair,
    decoder_norm_change,
    mse,
    of_least_error,
    row_errors,
)
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.matchers import Random
from saematch.matching.matches import MatchSet, match_pairs
from saematch.matching.objectives.parts import Parts
from saematch.matching.store import MatchStore
from saematch.sae.folding import fold
from saematch.sae.sources.disk import SaeFolders
from saematch.texts.sources import TextSet
from saematch.texts.tokens import tokenise


@spec("matcher")
class Soft:
    """Three random partners of random weights; two features have none."""

    one_partner: ClassVar[bool] = False
    seed: int = 0

    def __call__(self, factors):
        return soft(self.seed, len(factors.X_A), len(factors.X_B), gone=(0, 5))


@spec("matcher")
class Halves:
    """Half of each feature is itself, half the next one."""

    one_partner: ClassVar[bool] = False

    def __call__(self, factors):
        return halves(len(factors.X_A))


PAIRS = (Pair.of_layers(0, 1), Pair.of_layers(1, 3))
ARMS = {
    "soft": Arm("threshold", Parts(), Soft(1), ("permute", "permute_raw"), (0.0, 0.4, 1.0)),
    "halves": Arm("threshold", Parts(), Halves(), ("permute",), (0.5, 1.0)),
    "permutation": Arm("threshold", Parts(), Random(2)),
}


@pytest.fixture(scope="module")
def lm(tiny):
    return LmSource(str(tiny / "lm"), "tiny").load()


@pytest.fixture(scope="module")
def matched(tiny, tmp_path_factory):
    """The matches of a run, before its texts are read."""
    source = SaeFolders(f"{tiny}/saes/layer_{{layer}}")
    saes = {SaeKey("default", layer): source.load(layer) for layer in range(N_LAYERS)}
    folder = tmp_path_factory.mktemp("matches")
    matches = match_pairs(saes, PAIRS, ARMS, MatchStore(folder / "cache"), folder)
    return subject_of(saes, matches, ARMS, folder / "sums")


BOTH = (CoActivation(), Skipping(()))


@pytest.fixture(scope="module")
def batches(lm):
    return tokenise(TextSet("t", tuple(TEXTS)), lm, 10).batches(2)


@pytest.fixture(scope="module")
def subject(matched, lm, batches):
    return recorded(matched, BOTH, lm, {"t": batches})


@pytest.fixture(scope="module")
def active(matched, lm):
    """Which features of each SAE are active, by a plain forward of each text."""
    by_text = {key: [] for key in matched.saes}
    for text in TEXTS:
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids[:9]
        ids = torch.tensor([[lm.tokenizer.bos_token_id, *ids]])
        hidden = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
        for key, sae in matched.saes.items():
            seen = []
            hook = lm.blocks[key.layer].register_forward_hook(lambda m, i, o, s=seen: s.append(o))
            lm.model(input_ids=ids)
            hook.remove()
            assert len(hidden) == N_LAYERS + 1
            by_text[key].append(sae.encode(seen[0][0, 1:]) > 0)
    return {key: torch.cat(of_text) for key, of_text in by_text.items()}


def test_every_cell_equals_the_plain_evaluation(subject, lm):
    rows = tables_of(subject, Skipping(())).rows("strategies")
    assert len(rows) == 2 * (2 * 4 + 3 + 1)
    for row in rows:
        x_hat, x, losses = plain(subject, lm, row)
        unexplained = (x_hat - x).var(dim=0, correction=0).sum()
        expected = 1 - unexplained / x.var(dim=0, correction=0).sum()
        assert row["explained_variance"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
        assert row["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    by = {
        (row["arm"], row["strategy"], row["quantile"]): row["loss"]
        for row in rows
        if pair_of(row) == PAIRS[0]
    }
    assert by["halves", "permute", 1.0] == by["halves", "permute", None], "all have partners"
    assert by["soft", "permute", 1.0] != by["soft", "permute", None], "two features have none"


def test_counts_equal_dense_ones(subject, active):
    rows = tables_of(subject, CoActivation()).rows("activations")
    assert [row["dataset"] for row in rows] == ["t", "all"] * len(PAIRS) * len(ARMS)
    for row in rows:
        pair = pair_of(row)
        entries = dense(subject.matches.by_arm[row["arm"]][pair]) != 0
        own, other = active[pair.source], active[pair.target]
        partner = (other.double() @ entries.T.double()) > 0  # tokens x source features: any
        both, fired, either = ((m & own).sum(0) if k else m.sum(0) for k, m in
                               ((1, partner), (0, own), (0, own | partner)))  # fmt: skip
        live, matched = fired > 0, entries.any(dim=1)
        by_entry = own.T.double() @ other.double()
        expected = {
            "matching_score": both.sum() / fired.sum(),
            "matching_score_entries": by_entry[entries].sum() / (fired @ entries.sum(1)),
            "matching_score_live": both.sum() / fired[~matched | partner.any(0)].sum(),
            "matching_score_matched": both.sum() / fired[matched].sum(),
            "matching_score_macro": (both / fired)[live].mean(),
            "jaccard": (both / either)[live].mean(),
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value.item()), (row["arm"], name)
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        assert row["n_unmatched"] == int((live & ~matched).sum())
        assert row["n_dead_partners"] == int((live & matched & ~partner.any(0)).sum())
        assert row["n_both_live"] == int((live & partner.any(0)).sum())
        if row["arm"] == "permutation":
            assert row["matching_score_entries"] == row["matching_score"]
        else:
            assert row["matching_score_entries"] < row["matching_score"]


def test_counts_of_single_entries_equal_dense_ones(subject, active):
    for arm in ARMS:
        for pair in PAIRS:
            match = subject.matches.by_arm[arm][pair]
            chosen = [1, 4, 5]
            rows = subject.counts.of_entries(pair, match, chosen)
            for n, row in zip(chosen, rows, strict=True):
                own = active[pair.source][:, match.rows[n]]
                partner = active[pair.target][:, match.columns[n]]
                both, either = int((own & partner).sum()), int((own | partner).sum())
                n_own, n_partner = int(own.sum()), int(partner.sum())
                assert (row["n_fired_source"], row["n_fired_target"]) == (n_own, n_partner)
                assert row["matching_score"] == pytest.approx(both / n_own if n_own else 0)
                assert row["jaccard"] == pytest.approx(both / either if either else 0)


def test_a_match_of_one_partner_stores_nothing_twice(subject):
    kinds = {}
    (parts,) = subject.recordings["CoActivation"].files["t"]
    with safe_open(parts[0], framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - a file is no dictionary
            kind, match = name.split("|")[0], name.split("|")[-1]
            kinds.setdefault(match, {})[kind] = file.get_slice(name).get_shape()[1:]
    for pair in PAIRS:
        for arm, hashes in subject.matches.hashes.items():
            stored = {kind: kinds[hashes[pair]][kind] for kind in ("both", "entries", "partners")
                      if kind in kinds[hashes[pair]]}  # fmt: skip
            n_entries = len(subject.matches.by_arm[arm][pair].rows)
            several = {"both": [24], "entries": [n_entries], "partners": [24]}
            assert stored == ({"both": [24]} if arm == "permutation" else several)


@pytest.mark.parametrize("evaluation", BOTH, ids=("co_activation", "skipping"))
def test_halves_of_a_batch_are_joined_as_the_whole(matched, lm, batches, evaluation):
    check_halves(matched, lm, batches[0], evaluation)


def test_a_row_s_error_is_that_of_the_weighted_sum_of_its_partners():
    a, b, match = random_sae(0), random_sae(1), soft(3, gone=(2,))
    W_a, W_b = (fold(sae, "threshold").W_dec for sae in (a, b))
    expected = (W_a - dense(match).float() @ W_b).square().mean(dim=1)[match.matched]
    errors = row_errors(FoldedPair(a, b), match)
    torch.testing.assert_close(errors, expected.double(), rtol=1e-5, atol=1e-7)
    for share, n in ((0.0, 0), (0.5, 12), (1.0, 23)):
        part = of_least_error(match, errors, share)
        assert len(part.matched) == n
        assert torch.equal(dense(part)[part.matched], dense(match)[part.matched]), "all entries"
        assert torch.equal(part.matched, match.matched[errors.argsort()[:n]].sort().values)


def test_errors_and_norms_are_weighted_by_the_entries():
    a, b = random_sae(0), random_sae(1)
    weights = torch.zeros(24, 24)
    weights[2, 3], weights[2, 5], weights[7, 3] = 0.5, -0.25, 1.0
    errors_of_parts, norms = (
        of(FoldedPair(a, b), of_dense(weights)) for of in (mse, decoder_norm_change)
    )
    a, b = (fold(sae, "threshold") for sae in (a, b))
    share = {(2, 3): 0.5 / 1.75, (2, 5): 0.25 / 1.75, (7, 3): 1 / 1.75}
    errors = {(i, j): (a.W_dec[i] - b.W_dec[j]).square().mean().item() for i, j in share}
    assert errors_of_parts["W_dec"] == pytest.approx(
        sum(share[p] * errors[p] for p in share), rel=1e-5
    )
    change = {(i, j): (b.W_dec[j].norm() - a.W_dec[i].norm()).item() for i, j in share}
    mean = sum(share[p] * change[p] for p in share)
    assert norms["decoder_norm_change"] == pytest.approx(mean, rel=1e-5)


def test_equal_weights_have_the_quartiles_of_no_weights():
    a, b = random_sae(0), random_sae(1)
    once, half = (
        decoder_norm_change(FoldedPair(a, b), of_dense(w * dense(soft(1)).bool()))
        for w in (1.0, 0.5)
    )
    assert once == pytest.approx(half)
    match = soft(1)
    norms = [fold(sae, "threshold").W_dec.double().norm(dim=1) for sae in (a, b)]
    change = norms[1][match.columns] - norms[0][match.rows]
    for name, share in (("q25", 0.25), ("q75", 0.75)):
        expected = change.quantile(share).item()
        assert once[f"decoder_norm_change_{name}"] == pytest.approx(expected, rel=1e-6)


def test_quartiles_by_weight_by_hand():
    """Changes 0, 1 and 3 of mass 1, 2 and 1: their middles are at 0.5, 2 and 3.5."""
    sae = random_sae(0, n_features=4)
    fold_norms = torch.tensor([1.0, 2.0, 4.0, 1.0])
    target = scaled_to(sae, fold_norms)
    match = Match(torch.tensor([0, 0, 3]), torch.tensor([0, 1, 2]),
                  torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64), 4, 4)  # fmt: skip
    change = decoder_norm_change(FoldedPair(target, target), match)
    assert change["decoder_norm_change_q25"] == pytest.approx((1.25 - 0.5) / 1.5, rel=1e-5)
    assert change["decoder_norm_change_q75"] == pytest.approx(1 + 2 * (2.75 - 2) / 1.5, rel=1e-5)


def test_entries_of_weight_0_do_not_move_the_quartiles():
    sae = random_sae(0, n_features=4)
    target = scaled_to(sae, torch.tensor([100.0, 2.0, 4.0, 1.0]))
    rows, columns = torch.tensor([[0, 3, 3, 3], [3, 0, 1, 2]])
    weights = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    match = Match(rows, columns, weights, 4, 4)
    whole = decoder_norm_change(FoldedPair(target, target), match)
    assert whole == pytest.approx(
        decoder_norm_change(FoldedPair(target, target), match.keep(weights > 0))
    )


def scaled_to(sae, norms):
    """Return the SAE with folded decoder vectors of these norms."""
    from dataclasses import replace

    folded = fold(sae, "threshold").W_dec.norm(dim=1)
    return replace(sae, W_dec=sae.W_dec * (norms / folded)[:, None])


def test_the_table_of_matches_counts_features_entries_and_what_was_dropped():
    pair = Pair.of_layers(0, 1)
    saes = {key: random_sae(key.layer) for key in pair}
    spread = soft(1, gone=(0,))
    kept = spread.compose(permutation(3).compose(soft(2)), most=2)
    matches = MatchSet((pair,), {"a": {pair: spread}, "b": {pair: kept}})
    rows = MatchTables().tables(subject_of(saes, matches), None).rows("matches")
    columns = ("n_features", "n_matched", "n_entries", "dropped_mass")
    assert [[row[name] for name in columns] for row in rows] == [
        [24, 23, 69, 0.0],
        [24, 23, 46, kept.dropped],
    ]
    assert 0 < kept.dropped < 1
