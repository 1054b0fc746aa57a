import dataclasses

import pytest
import torch

from conftest import random_sae
from saematch.core.match import Match
from saematch.evaluate.weights import decoder_norm_change, feature_mse, mse
from saematch.sae.folding import fold
from saematch.sae.thresholds import threshold_summary


def test_mse_is_measured_on_folded_parameters():
    a, b = random_sae(0), random_sae(1)
    columns = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    errors = mse(a, b, Match.from_columns(columns, 24))
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
    assert set(mse(a, b, Match.from_columns(columns, 24)).values()) == {0.0}
    assert mse(a, b, Match.from_columns(inverse, 24))["W_dec"] > 0.1


def test_vectors_of_two_sizes_have_no_error_but_norms():
    """As of an objective of somebody else, which compares SAEs of two language models."""
    a, b = random_sae(0), random_sae(1, d_model=20)
    match = Match.from_columns(torch.arange(24), 24)
    assert set(mse(a, b, match).values()) == {None}
    assert feature_mse(a, b, match).isnan().all()
    norms = (torch.linalg.vector_norm(fold(sae, "threshold").W_dec, dim=1) for sae in (b, a))
    expected = torch.sub(*norms).mean().item()
    found = decoder_norm_change(a, b, match)["decoder_norm_change"]
    assert found == pytest.approx(expected, rel=1e-6)


def test_threshold_summary_by_hand():
    sae = random_sae(0, d_model=2, n_features=2)
    sae = dataclasses.replace(sae, threshold=torch.tensor([1.0, 3.0]))
    per_feature = {"thresholds": "per feature", "threshold_mean": 2.0, "threshold_spread": 0.5}
    assert threshold_summary(sae).items() >= per_feature.items()
    relu = dataclasses.replace(sae, threshold=None, activation="relu")
    none = {"thresholds": "none", "threshold_mean": None, "threshold_spread": None,
            "bias_share": None}  # fmt: skip
    assert threshold_summary(relu) == none
