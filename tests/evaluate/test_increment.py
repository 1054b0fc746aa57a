"""Fitted increments against dense ridge regression on plain hidden states."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import N_FEATURES, TEXTS, random_sae
from evaluations import CPU, recorded, subject_of, tables_of
from matches import dense, permutation, soft
from saematch.core.errors import InputError
from saematch.core.match import Match
from saematch.core.pairs import NO_ARM, Pair, SaeKey
from saematch.evaluate import ridge
from saematch.evaluate.changes import ChangeRecorder, Changes
from saematch.evaluate.increment import Increments
from saematch.evaluate.ridge import Moments, Regression
from saematch.evaluate.skipping import Skipping
from saematch.evaluate.splice import SpliceRecorder
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.matchers import Optimal
from saematch.matching.matches import MatchSet
from saematch.matching.objectives.parts import Parts
from saematch.sae.folding import fold, fold_scale
from saematch.sae.passes import TextPass
from saematch.sae.recorders import Models, Recording
from saematch.sae.sources.disk import SaeFolders
from saematch.sae.suites import SaeShelf
from saematch.texts.readers import Reader
from saematch.texts.sources import TextSet
from saematch.texts.tokens import tokenise

PAIRS = (Pair.of_layers(0, 1), Pair.of_layers(1, 3))
MATCHES = {
    "one": permutation(1),
    "partial": permutation(2).keep(torch.arange(N_FEATURES) % 3 > 0),
    "many": soft(3, gone=(0, 5)),
    "like_one": permutation(1),
}
ARMS = {
    name: Arm("threshold", Parts(), Optimal(), ("permute", "increment"), (0.5,)) for name in MATCHES
}
NEVER = 4
"""A feature of the first layer that is never active."""
SKIPPING = Skipping(("drop", "increment_free"), ridge=1e-2)


@pytest.fixture(scope="module")
def lm(tiny):
    return LmSource(str(tiny / "lm"), "tiny").load()


@pytest.fixture(scope="module")
def halves(lm):
    """Batches of calibration texts and of evaluation texts."""
    parts = (TEXTS[:3], TEXTS[3:])
    return [{"t": tokenise(TextSet("t", tuple(part)), lm, 20).batches(2)} for part in parts]


def text_pass(lm, tokens):
    return TextPass({"": Reader(lm, tokens)}, Models(), CPU)


@pytest.fixture(scope="module")
def subject(tiny, lm, halves, tmp_path_factory):
    """Matches of a run with calibration texts, before its evaluation texts are read."""
    source = SaeFolders(f"{tiny}/saes/layer_{{layer}}")
    saes = {SaeKey("default", layer): source.load(layer) for layer in range(4)}
    first = saes[PAIRS[0].source]
    threshold = torch.where(torch.arange(N_FEATURES) == NEVER, 1e6, first.threshold)
    saes[PAIRS[0].source] = dataclasses.replace(first, threshold=threshold)
    matches = MatchSet(PAIRS, {name: dict.fromkeys(PAIRS, m) for name, m in MATCHES.items()})
    subject = subject_of(saes, matches, ARMS, tmp_path_factory.mktemp("sums"))
    return dataclasses.replace(subject, calibration=text_pass(lm, halves[0]))


@pytest.fixture(scope="module")
def rows(subject, lm, halves):
    tables = tables_of(recorded(subject, [SKIPPING], lm, halves[1]), SKIPPING)
    return {
        (Pair.of_layers(row["source_layer"], row["target_layer"]), row["arm"], row["strategy"],
         row["quantile"]): row
        for row in tables.rows("strategies")
    }  # fmt: skip


def states(lm, tokens, layer):
    """Return the hidden states of a layer at the tokens that count, in float64."""
    batches = [(lm.states(b.ids, (layer,))[layer], b.counts) for b in tokens["t"]]
    return torch.cat([x[counts] for x, counts in batches]).detach().double()


def dense_fit(subject, lm, tokens, pair, match, penalty_share):
    """Return the matrix ``[n_source, d_model]`` by which dense ridge regression predicts x_t - x_s.

    Its rows are for activations in units of the decoder norm.
    """
    x_s, x_t = (states(lm, tokens, key.layer) for key in pair)
    F = fold(subject.saes[pair.source], "decoder_norm").encode(x_s.float()).double().numpy()
    Y = (x_t - x_s).numpy()
    live = (F > 0).any(axis=0)
    penalty = penalty_share * np.square(F).sum(axis=0)[live].mean()
    if match is None:
        return np.linalg.solve(F.T @ F + penalty * np.eye(F.shape[1]), F.T @ Y)
    units = fold(subject.saes[pair.target], "decoder_norm").W_dec.double().numpy()
    V = dense(match).numpy() @ units
    design = (F[:, None, :] * V.T[None]).reshape(-1, F.shape[1])
    gains = np.linalg.solve(
        design.T @ design + penalty * np.eye(F.shape[1]), design.T @ Y.reshape(-1)
    )
    return gains[:, None] * V


def predicted(subject, lm, tokens, pair, fit):
    """Return the predicted and the true hidden states of the target."""
    x_s, x_t = (states(lm, tokens, key.layer) for key in pair)
    F = fold(subject.saes[pair.source], "decoder_norm").encode(x_s.float()).double()
    return x_s + F @ torch.from_numpy(fit), x_t


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("arm", [*MATCHES, NO_ARM])
def test_rows_equal_dense_ridge_regression(subject, lm, halves, rows, pair, arm):
    fit = dense_fit(subject, lm, halves[0], pair, MATCHES.get(arm), SKIPPING.ridge)
    x_hat, x_t = predicted(subject, lm, halves[1], pair, fit)
    unexplained = (x_hat - x_t).var(dim=0, correction=0).sum()
    expected = 1 - (unexplained / x_t.var(dim=0, correction=0).sum()).item()
    strategy = "increment_free" if arm == NO_ARM else "increment"
    row = rows[pair, arm, strategy, None]
    assert row["explained_variance"] == pytest.approx(expected, abs=1e-6)
    assert row["n_texts"] == len(TEXTS) - 3


def test_gains_equal_dense_ridge_regression(subject, lm, halves):
    fits = Increments(subject.saes, subject.folder, subject.calibration, PAIRS, SKIPPING.ridge)
    for pair in PAIRS:
        target = fold(subject.saes[pair.target], "decoder_norm").W_dec.double()
        for match in MATCHES.values():
            fit = dense_fit(subject, lm, halves[0], pair, match, SKIPPING.ridge)
            moved = dense(fits.with_gains(pair, match)) @ target
            np.testing.assert_allclose(moved.numpy(), fit, rtol=1e-6, atol=1e-6)
    gained = dense(fits.with_gains(PAIRS[0], MATCHES["one"]))
    assert gained.any(dim=1).tolist() == [n != NEVER for n in range(N_FEATURES)]


def test_cells_of_increment_have_no_quantiles_and_equal_matches_share_a_splice(subject, rows):
    cells = {(arm, strategy, quantile) for _, arm, strategy, quantile in rows}
    of_arm = {("permute", None), ("permute", 0.5), ("increment", None)}
    expected = {(arm, *cell) for arm in MATCHES for cell in of_arm}
    assert cells == expected | {(NO_ARM, name, None) for name in SKIPPING.strategies}
    splices = [s for s in SKIPPING.recorder(subject).splices if s.strategy == "increment"]
    assert len(splices) == 3 * len(PAIRS), "one and like_one are equal"
    for pair in PAIRS:
        first, second = (rows[pair, arm, "increment", None] for arm in ("one", "like_one"))
        assert {**first, "arm": ""} == {**second, "arm": ""}


def test_names_of_files_depend_on_the_gains(subject):
    recorders = [Skipping((), value).recorder(subject) for value in (1e-2, 1e-1)]
    assert list(recorders[0].splices) == list(recorders[1].splices)
    assert recorders[0].facts() != recorders[1].facts()
    free = [Skipping(("increment_free",), value).recorder(subject) for value in (1e-2, 1e-1)]
    assert free[0].facts()[2] != free[1].facts()[2]


@dataclasses.dataclass(frozen=True)
class Planted(Recording):
    """A recording in memory, in three batches."""

    activations: torch.Tensor
    change: torch.Tensor

    def batches(self, names):
        for rows in torch.arange(600).split(250):
            tokens, features = torch.nonzero(self.activations[rows], as_tuple=True)
            counts = torch.bincount(tokens, minlength=len(rows)).int()
            values = self.activations[rows][tokens, features]
            tensors = {"counts": counts, "features": features.int(), "values": values}
            tensors["change"] = self.change[rows]
            yield [tensors[name.rpartition("|")[2]] for name in names]


def planted_fits(source, target, change, ridge):
    """Return fits to 600 tokens of 8 source features, the last of which is never active."""
    pair = PAIRS[0]
    shelf = SaeShelf.of({pair.source: source, pair.target: target})
    fits = Increments(shelf, Path("unused"), None, (pair,), ridge)
    g = torch.Generator().manual_seed(0)
    activations = torch.rand(600, 8, generator=g) * (torch.rand(600, 8, generator=g) < 0.4)
    activations[:, 7] = 0
    vars(fits)["recording"] = Planted({}, activations, change(activations))
    return fits


def sae_pair():
    """Return two SAEs of 8 features in 16 dimensions."""
    return (random_sae(seed, d_model=16, n_features=8, layer=seed) for seed in (0, 1))


def regression(fits, source, match, ridge=None):
    changes = Changes(fits.recording, PAIRS[0], fold_scale(source, "decoder_norm"))
    directions = None if match is None else fits.directions(changes, match)
    return Regression(
        changes, Moments.of(changes), directions, fits.ridge if ridge is None else ridge
    )


@pytest.mark.parametrize("match", [permutation(4, 8), soft(5, 8, 8, k=2)], ids=["one", "many"])
def test_planted_gains_are_recovered(match):
    """The change is exactly a sum of matched decoder vectors with known gains."""
    source, target = sae_pair()
    gains = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, 3.0, -0.2, 9.0], dtype=torch.float64)
    units = fold(target, "decoder_norm").W_dec.double()
    norms = source.W_dec.norm(dim=1)

    def change(activations):
        return (activations.double() * norms * gains) @ (dense(match) @ units)

    fits = planted_fits(source, target, change, 1e-9)
    fitted = regression(fits, source, match).solve()
    assert fitted.shape == (7, 1), "the last feature is never active"
    np.testing.assert_allclose(fitted[:, 0], gains[:7].numpy(), atol=1e-6)
    activations = fits.recording.activations
    explained = (activations.double() * norms)[:, :7] @ torch.from_numpy(
        fitted * (dense(match) @ units)[:7].numpy()
    )
    torch.testing.assert_close(explained, fits.recording.change, atol=1e-6, rtol=0)


def noisy(activations):
    g = torch.Generator().manual_seed(1)
    mixed = activations.double() @ torch.randn(8, 16, generator=g, dtype=torch.float64)
    return mixed + 0.3 * torch.randn(len(activations), 16, generator=g, dtype=torch.float64)


def test_free_vectors_are_never_worse_than_gains_on_the_calibration_texts():
    """Without a penalty that matters, since both fits minimise the same error."""
    source, target = sae_pair()
    fits = planted_fits(source, target, noisy, 1e-9)
    activations = (fits.recording.activations * source.W_dec.norm(dim=1)).double().numpy()[:, :7]
    change = fits.recording.change.numpy()
    free = regression(fits, source, None).solve()
    error = np.square(change - activations @ free).sum()
    for match in (permutation(4, 8), soft(5, 8, 8, k=2)):
        fit = regression(fits, source, match)
        with_gains = activations @ (fit.solve() * fit.directions)
        assert error <= np.square(change - with_gains).sum()
    assert error <= np.square(change).sum()


@pytest.mark.parametrize("match", [None, permutation(4, 8), soft(5, 8, 8, k=2)])
def test_conjugate_gradients_equal_cholesky(match, monkeypatch):
    source, target = sae_pair()
    fits = planted_fits(source, target, noisy, 1e-3)
    exact = regression(fits, source, match).solve()
    monkeypatch.setattr(ridge, "DENSE", 0)
    np.testing.assert_allclose(regression(fits, source, match).solve(), exact, atol=1e-7)


def test_conjugate_gradients_warn_if_they_do_not_converge(monkeypatch, caplog):
    source, target = sae_pair()
    fits = planted_fits(source, target, noisy, 1e-3)
    monkeypatch.setattr(ridge, "DENSE", 0)
    monkeypatch.setattr(ridge, "MOST_STEPS", 1)
    regression(fits, source, None).solve()
    assert "the fit stopped after 1 steps with a relative residual of" in caplog.text


def test_a_source_without_active_features_adds_nothing():
    source, target = sae_pair()
    fits = planted_fits(source, target, noisy, 1e-3)
    fits.recording.activations.zero_()
    assert regression(fits, source, permutation(4, 8)).solve().shape == (0, 1)
    assert regression(fits, source, None).solve().shape == (0, 16)


def test_results_do_not_depend_on_the_norms_of_decoder_vectors(subject, lm, halves, tmp_path):
    """A fold of the source multiplies activations and divides gains."""
    pair = PAIRS[0]
    other = {
        key: fold(sae, "threshold") if key == pair.source else sae
        for key, sae in subject.saes.items()
    }
    gains = [
        Increments(SaeShelf.of(saes), tmp_path / name, subject.calibration, (pair,), 1e-2)
        .with_gains(pair, MATCHES["one"]).weights
        for name, saes in (("as_is", dict(subject.saes)), ("folded", other))
    ]  # fmt: skip
    torch.testing.assert_close(*gains, rtol=1e-4, atol=1e-5)


def test_fits_are_kept(subject, monkeypatch):
    first = SKIPPING.recorder(subject).facts()

    def refuse(_):
        raise AssertionError("the fit exists")

    monkeypatch.setattr(Regression, "solve", refuse)
    assert SKIPPING.recorder(subject).facts() == first


def test_halves_of_a_batch_are_joined_as_the_whole(subject, lm, halves):
    from evaluate.test_splice import check_halves

    class Changing:
        def recorder(self, subject):
            return ChangeRecorder(subject.folder, PAIRS)

    check_halves(subject, lm, halves[0]["t"][0], Changing())


def test_no_text_is_read_for_both_purposes(cli, monkeypatch):
    """A run splits its texts, fits on one part and evaluates the other."""
    texts = {ChangeRecorder: [], SpliceRecorder: []}
    for recorder, ids in texts.items():
        real = recorder.record

        def record(self, forward, real=real, ids=ids):
            ids += [tuple(text) for text in forward.batch.ids.tolist()]
            return real(self, forward)

        monkeypatch.setattr(recorder, "record", record)
    message, _ = cli(
        "evaluations=[skipping]", "arms=[folded]", "arms.folded.decode=[increment]", "layers=[0,1]"
    )
    assert message is None
    fitted, evaluated = ({tuple(i for i in text if i) for text in ids} for ids in texts.values())
    assert fitted and evaluated
    assert not fitted & evaluated
    assert len(fitted | evaluated) == len(TEXTS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluations.skipping.ridge=0", "evaluations.skipping.ridge=0 must be greater than 0"),
        ("evaluations.skipping.ridge=1e-12", "ridge=1e-12 must be at least 1e-09"),
        ("arms.folded.decode=[incremental]", "permute, permute_raw, increment"),
        ("evaluations.skipping.strategies=[free]", "drop, increment_free"),
    ],
)
def test_settings_are_checked(cli, setting, message):
    assert message in cli("evaluations=[skipping]", setting)[0]


def test_increment_without_skipping_reads_no_texts(cli):
    message, printed = cli("arms=[folded]", "arms.folded.decode=[increment]", "layers=[0,1]")
    assert message is None
    assert "calibration" not in printed.out


def test_a_match_without_entries_copies_the_hidden_state(subject, lm, halves):
    empty = Match.from_columns(torch.full((N_FEATURES,), -1), N_FEATURES)
    matches = MatchSet(PAIRS[:1], {"one": {PAIRS[0]: empty}})
    subject = dataclasses.replace(subject, matches=matches, arms={"one": ARMS["one"]})
    tables = tables_of(recorded(subject, [SKIPPING], lm, halves[1]), SKIPPING)
    explained = {r["strategy"]: r["explained_variance"] for r in tables.rows("strategies")}
    assert explained["increment"] == pytest.approx(explained["drop"], abs=1e-9)


def test_a_ridge_below_the_limit_is_refused():
    with pytest.raises(InputError, match="at least 1e-09"):
        Skipping(ridge=1e-10)
