"""``verify`` on planted features of a model whose blocks add nothing: all values are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from architectures import GROUPED
from evaluations import tables_of
from interventions import subject_with, tokenised
from matches import of_dense
from saematch.core.pairs import Pair
from saematch.evaluate.interventions import DIRECTION
from saematch.evaluate.verify import Verify
from saematch.lm.hooks import LanguageModel
from saematch.matching.activity import record_activity
from saematch.matching.arm import Arm
from saematch.matching.evidence import Evidence
from saematch.matching.matchers import TopK
from saematch.matching.objectives.written_share import WrittenShare
from saematch.sae.params import SaeOrigin, SaeParams
from saematch.texts.trainer import TrainerSpec

N, N_SUMS, D = 40, 4, 96
"""Copied features, targets with two sources, and the width of the residual stream."""
PAIR = Pair.of_layers(1, 2)
COPIED = range(N)
"""Source features whose target has the same decoder and encoder."""
WRITERS = range(N, N + 2 * N_SUMS)
"""Source features; each two of them write one target feature."""


@pytest.fixture(scope="module")
def embedding():
    """Token embeddings: copied features, their twins on other coordinates, and sums."""
    random = np.random.default_rng(0)
    x = np.zeros((64, D))
    active = random.random((64, N)) < 0.2
    x[:, :N] = active * random.uniform(1, 2, (64, N))
    x[:, N : 2 * N] = active * random.uniform(1, 2, (64, N))
    together = np.repeat(random.random((64, N_SUMS)) < 0.4, 2, axis=1)
    x[:, 2 * N : 2 * N + 2 * N_SUMS] = together * random.uniform(1, 2, (64, 2 * N_SUMS))
    return torch.from_numpy(x).float()


@pytest.fixture(scope="module")
def lm(embedding):
    config = transformers.LlamaConfig(**{**GROUPED, "hidden_size": D})
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    model.model.embed_tokens.weight.copy_(embedding)
    for block in model.model.layers:
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    return LanguageModel(model, None, "planted")


def sae_of(layer, encoders, decoders):
    """Return a JumpReLU SAE whose threshold is below every planted activation."""
    n = len(encoders)
    return SaeParams(
        encoders.T.contiguous(), torch.zeros(n), decoders, torch.zeros(D), torch.full((n,), 0.05),
        "jumprelu", SaeOrigin(layer=layer, release="planted", sae_id=str(layer)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def saes():
    """Copies; twins, which read other coordinates, with decoders near the copies'; sums."""
    unit = torch.eye(D)
    writers = unit[2 * N : 2 * N + 2 * N_SUMS]
    source = torch.cat([unit[:N], writers])
    sums = writers.view(N_SUMS, 2, D).sum(dim=1)
    encoders = torch.cat([unit[: 2 * N], sums])
    twins = 0.6 * unit[:N] + 0.8 * unit[N : 2 * N]
    decoders = torch.cat([unit[:N], twins, sums])
    return sae_of(1, source, source), sae_of(2, encoders, decoders)


def arms():
    n_source, n_target = N + 2 * N_SUMS, 2 * N + N_SUMS
    copies, twins, both, sums = torch.zeros(4, n_source, n_target)
    for i in COPIED:
        copies[i, i] = twins[i, N + i] = 1
        both[i, i], both[i, N + i] = 0.4, 0.6
    for n, i in enumerate(WRITERS):
        sums[i, 2 * N + n // 2] = (0.7, 0.3)[n % 2]
    names = {"copies": copies, "twins": twins, "both": both, "sums": sums}
    return {name: of_dense(weights) for name, weights in names.items()}


@pytest.fixture(scope="module")
def subject(lm, saes, tmp_path_factory):
    g = torch.Generator().manual_seed(1)
    texts = [torch.randint(2, 64, (20,), generator=g) for _ in range(24)]
    parts = [tokenised(part).batches(6) for part in (texts[:14], texts[14:])]
    return subject_with(tmp_path_factory.mktemp("planted"), lm, saes, PAIR, arms(), parts)


VERIFY = Verify(partners=(1, 2), n_events=10, floor=2, features=tuple(COPIED))


@pytest.fixture(scope="module")
def tables(subject):
    return tables_of(subject, VERIFY)


def test_saes_compute_in_float32_in_any_precision(subject, tables):
    half = TrainerSpec(accelerator="cpu", precision="bf16-mixed")
    texts, calibration = (
        replace(part, trainer=half) for part in (subject.texts, subject.calibration)
    )
    results = tables_of(replace(subject, texts=texts, calibration=calibration), VERIFY)
    for name in ("verify", "verify_injection", "verify_joint", "verify_direct"):
        for row, expected in zip(results.rows(name), tables.rows(name), strict=True):
            for column, value in expected.items():
                if isinstance(value, float):
                    assert row[column] == pytest.approx(value, abs=1e-5), (name, column, row)


def row_of(tables, table, **values):
    rows = tables.rows(table)
    (row,) = [r for r in rows if all(r[name] == value for name, value in values.items())]
    return row


def scores(tables, arm, edit="remove", k=1):
    return row_of(tables, "verify", arm=arm, edit=edit, k=k, sampling="feature")


@pytest.mark.parametrize(
    ("arm", "k", "value"),
    [
        ("copies", 1, 1.0),
        ("twins", 1, 0.0),
        ("both", 1, 0.0),
        ("both", 2, 1.0),
        ("sums", 1, 0.0),
        ("near miss", 1, 0.0),
        ("learned", 1, 1.0),
        ("best in hindsight", 1, 1.0),
    ],
)
def test_removing_a_feature_has_an_effect_on_its_copy_only(tables, arm, k, value):
    row = scores(tables, arm, k=k)
    assert row["n_events"] > 200
    for name in ("off_rate", "effect", "mass"):
        assert row[name] == pytest.approx(value, abs=1e-6)


def test_coverage_is_the_share_of_events_in_which_a_partner_was_active(tables):
    covered = {"copies": 1.0, "twins": 1.0, "both": 1.0, "sums": 0.0, "near miss": 1.0}
    for arm, value in covered.items():
        assert scores(tables, arm)["coverage"] == value
    assert scores(tables, "near miss")["off_rate_active"] == 0.0
    assert scores(tables, "sums")["off_rate_active"] is None


def test_random_targets_are_rarely_the_copy(tables):
    for arm in ("copies", "twins"):
        row = scores(tables, arm)
        assert 0.05 < row["effect_random"] == row["off_rate_random"] < 0.2
        assert row["effect_over_random"] == pytest.approx(row["effect"] - row["effect_random"])
    assert scores(tables, "copies")["off_rate_over_random_low"] > 0.7


def test_smaller_doses_have_smaller_effects(tables, subject):
    half, mean = (scores(tables, "copies", edit) for edit in ("half", "to mean"))
    assert (half["off_rate"], mean["off_rate"]) == (0.0, 0.0)
    assert half["effect"] == pytest.approx(0.5)
    assert 0.1 < mean["effect"] < 0.3, "values are uniform from 1 to 2: (f - 1.5) / f for f > 1.5"
    assert mean["n_events"] < half["n_events"]


def test_a_random_direction_has_no_effect_on_average(tables, subject):
    row = scores(tables, "copies", DIRECTION)
    assert row["off_rate"] == 0.0
    assert abs(row["effect"]) < 4 / (D * row["n_events"]) ** 0.5
    effects = VERIFY.record(subject)[PAIR].effects(DIRECTION)
    changes = effects.of_partners(effects.features[:, None]).D
    assert np.std(changes) == pytest.approx(D**-0.5, rel=0.15), "one coordinate of a unit vector"


def test_the_copy_is_learned_on_calibration_texts(subject):
    assert VERIFY.record(subject)[PAIR].learned[:N].tolist() == list(COPIED)


def test_a_written_feature_switches_on_its_copy_only(tables):
    copies, twins = (row_of(tables, "verify_injection", arm=arm) for arm in ("copies", "twins"))
    assert copies["n_events"] > 25
    assert (copies["on_rate"], twins["on_rate"]) == (1.0, 0.0)
    assert (copies["specificity"], twins["specificity"]) == (pytest.approx(1.0), 0.0)
    assert copies["on_rate_random"] < 0.4


def test_a_target_of_two_sources_is_off_without_both_only(tables, embedding):
    row = row_of(tables, "verify_joint", arm="sums")
    assert row["n_events"] == N_SUMS
    assert row["mean_sources"] == 2
    assert row["joint_off_rate"] == row["joint_effect"] == 1.0
    assert row["single_off_rate"] == 0.0
    assert 1 / 3 < row["single_effect"] < 2 / 3, "values are uniform from 1 to 2"
    assert {r["arm"] for r in tables.rows("verify_joint")} == {"sums"}


def test_the_change_is_the_one_that_the_weights_predict(tables):
    row = row_of(tables, "verify_direct", arm="copies")
    assert row["slope"] == pytest.approx(1)
    assert row["correlation"] == pytest.approx(1)
    assert (row["reinforced"], row["erased"]) == (0.0, 0.0)
    twins = row_of(tables, "verify_direct", arm="twins")
    assert twins["slope"] is None, "the weights predict no change"


def test_verdicts_are_the_planted_ones(tables):
    rows = {row["arm"]: row for row in tables.rows("verify_verdicts")}
    assert rows["copies"]["n_judged"] > 10
    assert rows["copies"]["n_passing"] == rows["copies"]["n_judged"]
    assert rows["twins"]["n_passing"] == 0
    chosen = [row for row in tables.rows("verify_features") if row["arm"] == "copies"]
    assert [row["feature"] for row in chosen] == list(COPIED)
    for row in chosen:
        assert row["effect"] == row["effect_low"] == row["effect_high"] == 1.0
        assert row["n_active"] == row["n_events"]


def test_the_written_share_of_a_copy_is_1(subject, embedding, tmp_path):
    objective = WrittenShare()
    arm = Arm("threshold", objective, TopK(2))
    activity = record_activity(
        subject.saes, {"arm": [PAIR]}, {"arm": arm}, subject.calibration, tmp_path
    )
    candidates = Evidence(activity).similarity(subject.saes, PAIR, arm)
    keys = zip(candidates.rows.tolist(), candidates.columns.tolist(), strict=True)
    of_pair = dict(zip(keys, candidates.scores.tolist(), strict=True))
    for i in COPIED:
        assert of_pair[i, i] == pytest.approx(1)
        assert of_pair[i, N + i] == 0.0
    for first in WRITERS[::2]:
        column = 2 * N + (first - N) // 2
        assert of_pair[first, column] + of_pair[first + 1, column] == pytest.approx(1)
    match = arm.match(*subject.saes.values(), candidates)
    assert match.keep(match.rows < N).columns.tolist() == list(COPIED)
