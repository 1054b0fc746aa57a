import dataclasses

import numpy as np
import pytest
import torch

from conftest import random_sae
from saematch.core.match import Match
from saematch.evaluate.weights import (
    BLOCK,
    PARTS,
    FoldedPair,
    decoder_norm_change,
    feature_mse,
    mse,
    row_errors,
    squared_errors,
)
from saematch.sae.folding import fold
from saematch.sae.thresholds import threshold_summary


def test_mse_is_measured_on_folded_parameters():
    a, b = random_sae(0), random_sae(1)
    columns = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    errors = mse(FoldedPair(a, b), Match.from_columns(columns, 24))
    a, b = fold(a, "threshold"), fold(b, "threshold")
    assert errors["W_dec"] == pytest.approx((a.W_dec - b.W_dec[columns]).square().mean().item())
    assert errors["W_enc"] == pytest.approx((a.W_enc - b.W_enc[:, columns]).square().mean().item())
    assert errors["b_enc"] == pytest.approx((a.b_enc - b.b_enc[columns]).square().mean().item())


def test_the_same_sae_shuffled_has_no_error_through_its_own_permutation():
    a = random_sae(0)
    columns = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    inverse = torch.argsort(columns)
    b = dataclasses.replace(
        a,
        W_enc=a.W_enc[:, inverse],
        b_enc=a.b_enc[inverse],
        W_dec=a.W_dec[inverse],
        threshold=a.threshold[inverse],
    )
    assert set(mse(FoldedPair(a, b), Match.from_columns(columns, 24)).values()) == {0.0}
    assert mse(FoldedPair(a, b), Match.from_columns(inverse, 24))["W_dec"] > 0.1


def test_vectors_of_two_sizes_have_no_error_but_norms():
    """As of an objective of somebody else, which compares SAEs of two language models."""
    a, b = random_sae(0), random_sae(1, d_model=20)
    match = Match.from_columns(torch.arange(24), 24)
    assert set(mse(FoldedPair(a, b), match).values()) == {None}
    assert feature_mse(FoldedPair(a, b), match).isnan().all()
    norms = (torch.linalg.vector_norm(fold(sae, "threshold").W_dec, dim=1) for sae in (b, a))
    expected = torch.sub(*norms).mean().item()
    changed = decoder_norm_change(FoldedPair(a, b), match)["decoder_norm_change"]
    assert changed == pytest.approx(expected, rel=1e-6)


def test_metrics_agree_with_plain_numpy_in_float64():
    """Several blocks of rows, the last one not full, and rows with no, one and three entries."""
    n = 2 * BLOCK + 7
    a, b = (random_sae(seed, d_model=20, n_features=n) for seed in (0, 1))
    generator = np.random.default_rng(2)
    dense = np.zeros((n, n))
    for row in np.delete(np.arange(n), [0, 70]):
        partners = generator.choice(n, 1 + 2 * (row % 2), replace=False)
        dense[row, partners] = generator.standard_normal(len(partners))
    rows, columns = np.nonzero(dense)
    weights = dense[rows, columns]
    match = Match(*(torch.from_numpy(part) for part in (rows, columns, weights)), n, n)
    pair = FoldedPair(a, b)

    (W_enc, b_enc, W_dec), (V_enc, c_enc, V_dec) = (in_float64(sae) for sae in (a, b))
    expected = {
        "W_enc": ((W_enc[rows] - V_enc[columns]) ** 2).mean(axis=1),
        "b_enc": (b_enc[rows] - c_enc[columns]) ** 2,
        "W_dec": ((W_dec[rows] - V_dec[columns]) ** 2).mean(axis=1),
    }
    errors = squared_errors(pair, match)
    means = mse(pair, match)
    for part in PARTS:
        np.testing.assert_allclose(errors[part], expected[part], rtol=1e-5, atol=1e-9)
        mean = np.average(expected[part], weights=np.abs(weights))
        assert means[part] == pytest.approx(mean, rel=1e-6)
    assert torch.equal(feature_mse(pair, match), errors["W_dec"])
    mixed = ((W_dec - dense @ V_dec) ** 2).mean(axis=1)[np.unique(rows)]
    np.testing.assert_allclose(row_errors(pair, match), mixed, rtol=1e-5)
    change = np.linalg.norm(V_dec, axis=1)[columns] - np.linalg.norm(W_dec, axis=1)[rows]
    mean = np.average(change, weights=np.abs(weights))
    assert decoder_norm_change(pair, match)["decoder_norm_change"] == pytest.approx(mean, rel=1e-5)


def in_float64(sae):
    scale = sae.threshold.double().numpy()
    W_enc, b_enc, W_dec = (getattr(sae, part).double().numpy() for part in PARTS)
    return W_enc.T / scale[:, None], b_enc / scale, W_dec * scale[:, None]


def test_nothing_matched_has_no_errors():
    pair = FoldedPair(random_sae(0), random_sae(1))
    nothing = Match.from_columns(torch.full((24,), -1), 24)
    assert set(mse(pair, nothing).values()) == {None}
    assert not len(row_errors(pair, nothing)) and not len(feature_mse(pair, nothing))


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_folding_leaves_the_sae_as_it_was(order):
    """``W_enc`` may be stored by rows or, after a transpose, by columns."""
    sae = random_sae(0)
    W_enc = sae.W_enc if order == "rows" else sae.W_enc.T.contiguous().T
    sae, before = dataclasses.replace(sae, W_enc=W_enc), W_enc.clone()
    folded = FoldedPair(sae, sae).encoders[0]
    assert torch.equal(sae.W_enc, before)
    assert torch.equal(folded, fold(sae, "threshold").W_enc.T) and folded.is_contiguous()


def test_threshold_summary_by_hand():
    sae = random_sae(0, d_model=2, n_features=2)
    sae = dataclasses.replace(sae, threshold=torch.tensor([1.0, 3.0]))
    per_feature = {"thresholds": "per feature", "threshold_mean": 2.0, "threshold_spread": 0.5}
    assert threshold_summary(sae).items() >= per_feature.items()
    relu = dataclasses.replace(sae, threshold=None, activation="relu")
    none = {"thresholds": "none", "threshold_mean": None, "threshold_spread": None,
            "bias_share": None}  # fmt: skip
    assert threshold_summary(relu) == none
