"""``verify`` agrees with a plain implementation: whole model, hooks, one event at a time."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr, t

from evaluations import recorded, tables_of
from interventions import (
    FIRST,
    SPECIAL,
    Event,
    Oracle,
    effects_of,
    fitting_sae,
    lively,
    ranked,
    sources,
    subject_with,
    texts_of,
)
from matches import of_dense, soft
from saematch.core.pairs import Pair
from saematch.evaluate.co_activation import CoActivation
from saematch.evaluate.effects import Effects, different_events, read_events
from saematch.evaluate.events import Events, directions
from saematch.evaluate.interventions import EDITS, HALF, INJECT, REMOVE, TO_MEAN, joint_edit
from saematch.evaluate.verify import Verify
from saematch.evaluate.verify_features import activity_measures
from saematch.evaluate.verify_tables import NEAR_MISS, PairTables
from saematch.sae.folding import fold
from saematch.texts.priorities import text_keys

SEED = 3
N_SOURCE, N_TARGET = 20, 18
VERIFY = Verify(
    partners=(1, 2, 3, 9), n_events=2, n_token_events=25, n_learning=2, n_injections=1, floor=2,
    seed=SEED,
)  # fmt: skip
CASES = {
    "Llama": (Pair.of_layers(0, 2), "jumprelu", "relu"),
    "GPT2": (Pair.of_layers(1, 3), "relu", "topk"),
    "Gemma2": (Pair.of_layers(1, 2), "topk", "jumprelu"),
}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
NEAR = {"rel": 1e-5, "abs": 1e-5}


class Case(NamedTuple):
    """A verified pair, and what the oracle says of it."""

    oracle: Oracle
    subject: object
    arms: dict
    verified: object
    tables: object
    texts: dict
    """Token ids of the evaluation texts by their keys."""
    fitted: dict
    """Token ids of the calibration texts by their keys."""


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    pair, *kinds = CASES[request.param]
    lm, sizes = lively(request.param), (N_SOURCE, N_TARGET)
    saes = [
        fitting_sae(lm, key.layer, kind, n, key.layer)
        for key, kind, n in zip(pair, kinds, sizes, strict=True)
    ]
    partial = torch.zeros(N_SOURCE, N_TARGET)
    partial[torch.arange(12), torch.randperm(N_TARGET)[:12]] = 1
    arms = {"soft": soft(1, N_SOURCE, N_TARGET, gone=(0, 5)), "partial": of_dense(partial)}
    tokens = texts_of(6, 1, repeat=True), texts_of(6, 2)
    batches = [part.batches(3) for part in tokens]
    folder = tmp_path_factory.mktemp(request.param)
    subject = subject_with(folder, lm, saes, pair, arms, batches)
    keys = [
        {
            key: tuple(ids[:length].tolist())
            for batch in part
            for key, ids, length in zip(
                text_keys(batch).tolist(), batch.ids, batch.lengths.tolist(), strict=True
            )
        }
        for part in batches
    ]
    subject = recorded(subject, [CoActivation()], lm, {"t": batches[0]})
    tables = tables_of(subject, VERIFY)
    verified = VERIFY.record(subject)[pair]
    oracle = Oracle(lively(request.param).double(), pair, saes, tokens[1])
    return Case(oracle, subject, arms, verified, tables, *keys)


def events_of(columns, texts):
    """Return the events with given columns."""
    parts = (columns[name].tolist() for name in ("key", "position", "feature"))
    return [
        Event(texts[key], position, feature) for key, position, feature in zip(*parts, strict=True)
    ]


def check_event(event):
    assert event.position >= FIRST
    assert event.text[event.position] not in SPECIAL


def vectors_of(case, edit, columns, events):
    """Return the vector that an edit adds at each event."""
    oracle, d = case.oracle, case.oracle.source.W_dec.numpy()
    f = np.array([oracle.values(event)[0] for event in events])
    contributions = f[:, None] * d[[event.feature for event in events]]
    if edit == REMOVE:
        return -contributions
    if edit == HALF:
        return -contributions / 2
    if edit == TO_MEAN:
        means = np.array([oracle.fitted_values[event.feature].mean() for event in events])
        assert (f > means).all()
        return -contributions * (1 - means / f)[:, None]
    parts = (torch.from_numpy(columns[n]).long() for n in ("key", "position", "feature"))
    flags = torch.ones(len(f), dtype=torch.bool)
    of_events = Events(*parts, torch.from_numpy(f), flags, flags)
    random = directions(SEED, of_events, d.shape[1]).double().numpy()
    np.testing.assert_allclose(np.linalg.norm(random, axis=1), 1, rtol=1e-6)
    return -np.linalg.norm(contributions, axis=1)[:, None] * random


@pytest.mark.parametrize("edit", EDITS)
def test_effects_are_those_of_a_plain_forward(case, edit):
    effects = case.verified.effects(edit)
    events = events_of(effects.columns, case.texts)
    assert len(set(events)) == len(events) > 10
    vectors = vectors_of(case, edit, effects.columns, events)
    outcomes = []
    for n, (event, vector) in enumerate(zip(events, vectors, strict=True)):
        check_event(event)
        f, before = case.oracle.values(event)
        assert effects.columns["value"][n] == pytest.approx(f, **NEAR)
        pre, after = case.oracle.after(event, vector)
        entries = slice(effects.starts[n], effects.starts[n + 1])
        active = np.flatnonzero(before)
        np.testing.assert_array_equal(effects.targets[entries], active)
        np.testing.assert_allclose(effects.before[entries], before[active], **CLOSE)
        np.testing.assert_allclose(effects.after[entries], after[active], **CLOSE)
        np.testing.assert_allclose(effects.change[entries], (pre - before)[active], **CLOSE)
        outcomes.append((event.feature, before, *effects_of(before, after)))
    check_scores(case, edit, effects.columns, outcomes)
    if edit == REMOVE:
        check_direct(case, effects.columns, events, vectors)


def check_scores(case, edit, columns, outcomes):
    """Compare the rows of ``verify`` with scores computed event by event."""
    rows = case.tables.rows("verify")
    n_rows = 0
    for row in rows:
        if row["edit"] != edit or row["arm"] not in (*case.arms, "best in hindsight", "learned"):
            continue
        n_rows += 1
        scores = []
        for (feature, before, D, off, drop), chosen in zip(
            outcomes, columns[f"by_{row['sampling']}"], strict=True
        ):
            if row["arm"] in case.arms:
                partners = ranked(case.arms[row["arm"]], feature)[: row["k"]]
            elif row["arm"] == "learned":
                partner = int(case.verified.learned[feature])
                partners = [partner] if partner >= 0 else []
            else:
                partners = [int(np.argmax(D))] if D.max() > 0 else []
            share = drop[partners].sum() / drop.sum() if drop.sum() else 0.0
            scores.append(
                (D[partners].max(initial=-1) if partners else 0.0, off[partners].max(initial=0),
                 share, (before[partners] > 0).any(), chosen)
            )  # fmt: skip
        effect, off, mass, coverage, chosen = np.array(scores, dtype=float).T
        chosen = chosen > 0
        assert row["n_events"] == chosen.sum()
        check_interval(row, effect[chosen], columns["key"][chosen], case.texts)
        covered = chosen & (coverage > 0)
        expected = {
            "effect": effect[chosen].mean(),
            "off_rate": off[chosen].mean(),
            "mass": mass[chosen].mean(),
            "coverage": coverage[chosen].mean(),
            "off_rate_active": off[covered].mean() if covered.any() else None,
        }
        for name, value in expected.items():
            if value is None:
                assert row[name] is None
            else:
                assert row[name] == pytest.approx(value, **NEAR), (name, row)
    n_samplings = 2 if edit == REMOVE else 1
    assert n_rows == n_samplings * (3 + 1 + 2), "k = 1, 2, 3 of soft, 1 of the others; 9 of none"


def check_interval(row, effect, keys, texts):
    """Compare the interval of the effect with a jackknife over texts; the repeated text is empty.

    A replicate without an event makes the interval undefined.
    """
    means = [effect[keys != key].mean() if (keys != key).any() else np.nan for key in texts]
    means, n = np.array([*means, effect.mean()]), len(texts) + 1
    if np.isnan(means).any():
        assert row["effect_low"] is None
        return
    error = np.sqrt(((means - means.mean()) ** 2).sum() * (n - 1) / n)
    half = t.ppf(0.975, n - 1) * error
    assert row["effect_low"] == pytest.approx(max(effect.mean() - half, -1), abs=1e-4)
    assert row["effect_high"] == pytest.approx(min(effect.mean() + half, 1), abs=1e-4)


def check_direct(case, columns, events, vectors):
    """Compare the rows of ``verify_direct``."""
    rows = {row["arm"]: row for row in case.tables.rows("verify_direct")}
    w_enc = case.oracle.target.W_enc.numpy()
    assert set(rows) == set(case.arms)
    for arm, match in case.arms.items():
        predicted, measured = [], []
        for event, vector, chosen in zip(events, vectors, columns["by_feature"], strict=True):
            partners = ranked(match, event.feature)[:1]
            _, before = case.oracle.values(event)
            if chosen and partners and before[partners[0]] > 0:
                pre, _ = case.oracle.after(event, vector)
                predicted.append(vector @ w_enc[:, partners[0]])
                measured.append(pre[partners[0]] - before[partners[0]])
        p, m = np.array(predicted), np.array(measured)
        assert rows[arm]["n_events"] == len(p)
        expected = {
            "slope": (p * m).sum() / (p * p).sum(),
            "correlation": np.corrcoef(p, m)[0, 1],
            "reinforced": (m / p > 1.1).mean(),
            "erased": (m / p < 0.1).mean(),
        }
        for name, value in expected.items():
            assert rows[arm][name] == pytest.approx(value, rel=1e-5, abs=1e-5), (arm, name)


def test_injections_are_those_of_a_plain_forward(case):
    effects = Effects.read(
        case.verified.recording, case.verified.twin, INJECT, N_TARGET, ("silent", "total")
    )
    events = events_of(effects.columns, case.texts)
    live = [n for n, values in enumerate(case.oracle.fitted_values) if len(values) >= 2]
    assert sorted(event.feature for event in events) == live
    results = []
    for n, event in enumerate(events):
        check_event(event)
        amount = np.median(case.oracle.fitted_values[event.feature])
        assert effects.columns["value"][n] == pytest.approx(amount, **NEAR)
        f, before = case.oracle.values(event)
        _, after = case.oracle.after(
            event, amount * case.oracle.source.W_dec.numpy()[event.feature]
        )
        entries = slice(effects.starts[n], effects.starts[n + 1])
        touched = np.flatnonzero((before > 0) | (after > 0))
        np.testing.assert_array_equal(effects.targets[entries], touched)
        np.testing.assert_allclose(effects.after[entries], after[touched], **CLOSE)
        assert effects.columns["silent"][n] == (f == 0)
        total = np.abs(after - before).sum()
        assert effects.columns["total"][n] == pytest.approx(total, **NEAR)
        results.append((f == 0, before, after, total))
    for row in case.tables.rows("verify_injection"):
        on, share = [], []
        for event, (silent, before, after, total) in zip(events, results, strict=True):
            partners = ranked(case.arms[row["arm"]], event.feature)[:1]
            if silent and partners and before[partners[0]] == 0:
                on.append(float(after[partners[0]] > 0))
                share.append(after[partners[0]] / total if total else 0.0)
        assert (row["n_events"], row["n_dropped"]) == (len(on), len(events) - len(on))
        assert row["on_rate"] == pytest.approx(np.mean(on))
        assert row["specificity"] == pytest.approx(np.mean(share), **NEAR)


def test_joint_removals_are_those_of_a_plain_forward(case):
    match = case.arms["soft"]
    columns = read_events(
        case.verified.recording, case.verified.twin, joint_edit(match.hash),
        ("before", "joint", "single", "n_sources"),
    )  # fmt: skip
    chosen = different_events(columns)
    columns = {name: values[chosen] for name, values in columns.items()}
    events = events_of(columns, case.texts)
    d = case.oracle.source.W_dec.numpy()
    scores = []
    for n, event in enumerate(events):
        check_event(event)
        f, z = (part[event.position] for part in case.oracle.clean(event.text))
        before = z[event.feature]
        assert before > 0
        of_target = {i: w for i, w in sources(match, event.feature).items() if f[i] > 0}
        assert columns["n_sources"][n] == len(of_target) > 0
        largest = max(of_target, key=lambda i: of_target[i])
        together = -sum(f[i] * d[i] for i in of_target)
        _, joint = case.oracle.after(event, together)
        _, single = case.oracle.after(event, -f[largest] * d[largest])
        joint, single = joint[event.feature], single[event.feature]
        for name, value in (("before", before), ("joint", joint), ("single", single)):
            assert columns[name][n] == pytest.approx(value, **NEAR)
        scores.append(
            [np.clip(1 - joint / before, -1, 1), joint == 0, np.clip(1 - single / before, -1, 1),
             single == 0]
        )  # fmt: skip
    (row,) = case.tables.rows("verify_joint")
    assert row["arm"] == "soft"
    assert row["n_events"] == len(events) > 3
    names = ("joint_effect", "joint_off_rate", "single_effect", "single_off_rate")
    expected = np.mean(np.array(scores, dtype=float), axis=0)
    assert [row[name] for name in names] == pytest.approx(expected.tolist(), **NEAR)
    assert columns["n_sources"].max() > 1


def test_learned_partners_have_the_largest_effect_on_calibration_texts(case):
    """The sample of events is the one of the first two priorities, on the calibration texts."""
    sums = np.zeros((N_SOURCE, N_TARGET))
    d = case.oracle.source.W_dec.numpy()
    events = case.verified.source.events
    counts = np.zeros(N_SOURCE, int)
    for key, position, feature, by_feature in zip(
        *(getattr(events, n).tolist() for n in ("texts", "positions", "features", "by_feature")),
        strict=True,
    ):
        counts[feature] += by_feature
        if not by_feature or counts[feature] > 2 or not case.verified.tested[feature]:
            continue
        event = Event(case.fitted[key], position, feature)
        f, before = case.oracle.values(event)
        _, after = case.oracle.after(event, -f * d[feature])
        sums[feature] += effects_of(before, after)[0]
    expected = np.where(sums.max(axis=1) > 0, sums.argmax(axis=1), -1)
    np.testing.assert_array_equal(case.verified.learned, expected)


def effects_of_features(case, arm):
    """Return the mean effect of each feature on its best partner, and its number of events."""
    effects = case.verified.effects(REMOVE)
    sums, counts = np.zeros(N_SOURCE), np.zeros(N_SOURCE, int)
    for n in np.flatnonzero(effects.columns["by_feature"]):
        feature = effects.features[n]
        counts[feature] += 1
        entries = slice(effects.starts[n], effects.starts[n + 1])
        of_targets = dict(zip(effects.targets[entries], effects.D[entries], strict=True))
        partners = ranked(case.arms[arm], feature)[:1]
        sums[feature] += of_targets.get(partners[0], 0.0) if partners else 0.0
    return np.divide(sums, counts, out=np.full(N_SOURCE, np.nan), where=counts > 0), counts


def test_strata_are_quarters_of_the_features_by_activity(case):
    activity = [len(values) for values in case.oracle.fitted_values]
    tested = sorted((n for n in range(N_SOURCE) if activity[n] >= 2), key=lambda n: activity[n])
    rows = {(r["arm"], r["stratum"]): r for r in case.tables.rows("verify_strata") if r["k"] == 1}
    for arm in case.arms:
        effect, counts = effects_of_features(case, arm)
        for stratum in range(1, 5):
            chosen = [n for rank, n in enumerate(tested) if rank * 4 // len(tested) == stratum - 1]
            row = rows[arm, stratum]
            assert (row["n_features"], row["n_events"]) == (len(chosen), counts[chosen].sum())
            having = [n for n in chosen if counts[n]]
            mean = (effect[having] * counts[having]).sum() / counts[having].sum()
            assert row["effect"] == pytest.approx(mean, **NEAR)


def test_contrasts_are_differences_on_the_same_events(case):
    scores = {
        (row["arm"], row["sampling"], row["k"]): row
        for row in case.tables.rows("verify")
        if row["edit"] == REMOVE
    }
    rows = case.tables.rows("verify_contrasts")
    assert {(row["arm"], row["against_arm"]) for row in rows} >= {
        ("soft", "partial"), ("partial", NEAR_MISS), ("soft", "learned"),
    }  # fmt: skip
    for row in rows:
        first, second = (
            scores[row[name], row["sampling"], row["k"]] for name in ("arm", "against_arm")
        )
        for name in ("effect", "off_rate"):
            difference = first[name] - second[name]
            assert row[f"{name}_difference"] == pytest.approx(difference, abs=1e-9)


def test_a_near_miss_is_one_of_the_2nd_to_6th_best_by_decoder_cosine(case):
    replicates = case.subject.measures.replicates
    tables = PairTables(case.subject, case.verified, replicates, (1,), SEED, 1)
    (candidate,) = (c for c in tables.candidates if c.name == NEAR_MISS)
    features = np.repeat(np.arange(N_SOURCE), 60)
    partners = tables.of_events(candidate, features)[:, 0].reshape(N_SOURCE, 60)
    d, e = (
        torch.nn.functional.normalize(sae.W_dec, dim=1)
        for sae in (case.oracle.source, case.oracle.target)
    )
    for feature, cosines in enumerate(d @ e.T):
        nearest = cosines.topk(6)
        expected = nearest.indices[nearest.values > 0][1:].tolist()
        expected += [-1] * (len(expected) < 5)
        assert set(partners[feature].tolist()) == set(expected)


def test_correlations_are_those_of_scipy(case):
    rows = {(row["arm"], row["measure"]): row for row in case.tables.rows("verify_correlations")}
    d, e = case.oracle.source.W_dec.numpy(), case.oracle.target.W_dec.numpy()
    for arm, match in case.arms.items():
        effect, counts = effects_of_features(case, arm)
        chosen = [n for n in range(N_SOURCE) if counts[n] and ranked(match, n)]
        best = [ranked(match, n)[0] for n in chosen]
        cosine = (d[chosen] * e[best]).sum(axis=1)
        cosine /= np.linalg.norm(d[chosen], axis=1) * np.linalg.norm(e[best], axis=1)
        row = rows[arm, "cosine"]
        assert row["n_features"] == len(chosen)
        assert row["spearman"] == pytest.approx(spearmanr(effect[chosen], cosine).statistic)
        d_folded, e_folded = (
            fold(sae, "threshold").W_dec.double().numpy() for sae in case.subject.saes.values()
        )
        error = ((d_folded[chosen] - e_folded[best]) ** 2).mean(axis=1)
        expected = spearmanr(effect[chosen], error).statistic
        assert rows[arm, "squared_error"]["spearman"] == pytest.approx(expected)


def test_measures_of_activity_by_hand(case):
    replicates = case.subject.measures.replicates
    tables = PairTables(case.subject, case.verified, replicates, (1,), SEED, 1)
    measures = activity_measures(tables)["partial"]
    both, fired, fired_target = np.zeros((3, N_SOURCE))
    for batch in case.subject.texts.readers[""].tokens["t"]:
        for ids, length, counts in zip(batch.ids, batch.lengths, batch.counts, strict=True):
            f, z = case.oracle.clean(tuple(ids[:length].tolist()))
            f, z = (part[counts[:length].numpy()] > 0 for part in (f, z))
            for i in range(12):
                (j,) = ranked(case.arms["partial"], i)
                both[i] += (f[:, i] & z[:, j]).sum()
                fired[i] += f[:, i].sum()
                fired_target[i] += z[:, j].sum()
    either = fired + fired_target - both
    with np.errstate(invalid="ignore"):
        expected = {"jaccard": both / either, "matching_score": both / fired}
    for name, values in expected.items():
        np.testing.assert_allclose(measures[name][:12], values[:12], err_msg=name)
