"""The evaluation against a plain one: dense features, hooks, the whole model every time."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from saematch.evaluate.plan import Cell, evaluate_texts, plan_splices
from saematch.evaluate.tables import Tables
from safetensors import safe_open
from torch.nn.functional import cross_entropy

from conftest import N_LAYERS, TEXTS
from matches import dense, partners
from saematch.core.pairs import Pair, SaeKey, pair_of
from saematch.evaluate import splice
from saematch.evaluate.intervals import Intervals
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.matchers import Random
from saematch.matching.matches import MatchSet, match_pairs
from saematch.matching.objectives.parts import Parts
from saematch.matching.store import MatchStore
from saematch.sae.folding import fold
from saematch.sae.params import SaeOrigin
from saematch.sae.sources.disk import SaeFolders
from saematch.texts.sources import TextSet
from saematch.texts.sums import TextSums
from saematch.texts.text_pass import run_batches
from saematch.texts.tokens import TokenBatch, tokenise
from saematch.texts.trainer import TrainerSpec

PAIRS = (Pair.of_layers(0, 1), Pair.of_layers(1, 3))
ARMS = {
    "a": Arm("threshold", Parts(), Random(1), ("permute", "permute_raw"), (0.0, 0.4, 1.0)),
    "b": Arm("threshold", Parts(), Random(2)),
    "like_a": Arm("threshold", Parts(), Random(1)),
}
STRATEGIES = ("reconstruct_previous", "reconstruct_current", "drop")


@dataclass
class Planned:
    """A plan and what it was made from."""

    saes: dict
    matches: MatchSet
    cells: list[Cell]
    plan: object


@pytest.fixture(scope="module")
def lm(tiny):
    return LmSource(str(tiny / "lm"), "tiny").load()


@pytest.fixture(scope="module")
def planned(tiny, tmp_path_factory):
    source = SaeFolders(f"{tiny}/saes/layer_{{layer}}")
    assert source.layers() == list(range(N_LAYERS))
    saes = {SaeKey("default", layer): source.load(layer) for layer in range(N_LAYERS)}
    folder = tmp_path_factory.mktemp("matches")
    matches = match_pairs(saes, PAIRS, ARMS, MatchStore(folder / "cache"), folder)
    plan, cells = plan_splices(saes, matches, ARMS, STRATEGIES)
    return Planned(saes, matches, cells, plan)


@pytest.fixture(scope="module")
def batches(lm):
    batches = tokenise(TextSet("t", tuple(TEXTS)), lm, 10).batches(2)
    assert len({batch.ids.shape for batch in batches}) > 1, "texts of several lengths"
    return batches


def evaluated(planned, lm, batches, folder, **spec):
    spec = TrainerSpec(**{"accelerator": "cpu", **spec})
    paths = [folder / f"{number}.safetensors" for number in range(len(batches))]
    run_batches(spec, planned.plan, lm, batches, "t", paths)
    return TextSums((tuple(paths),))


@pytest.fixture(scope="module")
def sums(planned, lm, batches, tmp_path_factory):
    return evaluated(planned, lm, batches, tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def rows(planned, sums):
    tables = Tables(planned.plan, {"t": sums}, Intervals()).strategies(planned.cells)
    return tables.rows("strategies")


def names(sums):
    with safe_open(sums.parts[0][0], framework="pt") as file:
        return sorted(file.keys())


def staying(a, b, weights, quantile):
    """Return the features that keep their own decoder vectors: all but those of least error."""
    a, b = fold(a, "threshold"), fold(b, "threshold")
    errors = (a.W_dec - weights @ b.W_dec).square().mean(dim=1)
    matched = weights.any(dim=1)
    errors[~matched] = torch.inf
    return torch.argsort(errors)[round(quantile * int(matched.sum())) :]


def plain(planned, lm, cell):
    """Return x_hat, x and the losses of each text, evaluated one by one."""
    pair = cell.splice.pair
    source, target = pair.source.layer, pair.target.layer
    a, b = planned.saes[pair.source], planned.saes[pair.target]
    found = []
    for text in TEXTS:
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids[:9]
        ids = torch.tensor([[lm.tokenizer.bos_token_id, *ids]])
        hidden = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
        x_t = hidden[source + 1][0, 1:]
        seen = []
        hook = lm.blocks[target].register_forward_hook(lambda m, i, o, s=seen: s.append(o))
        lm.model(input_ids=ids)
        hook.remove()
        x = seen[0][0, 1:]
        if cell.splice.strategy.startswith("permute"):
            by = {"permute": "threshold", "permute_raw": "decoder_norm"}[cell.splice.strategy]
            match = planned.matches.by_arm[cell.arm][pair]
            features = fold(a, by).encode(x_t)
            weights = dense(match).float()
            stay = torch.zeros_like(features)
            if cell.splice.quantile is not None:
                own = staying(a, b, weights, cell.splice.quantile)
                stay[:, own] = features[:, own]
            x_hat = fold(b, by).decode((features - stay) @ weights) + stay @ fold(a, by).W_dec
        else:
            x_hat = {
                "reconstruct_previous": a.reconstruct(x_t),
                "reconstruct_current": b.reconstruct(x),
                "drop": x_t,
            }[cell.splice.strategy]
        replaced = torch.cat([seen[0][:, :1], x_hat[None]], dim=1)
        hook = lm.blocks[target].register_forward_hook(lambda m, i, o, r=replaced: r)
        logits = lm.model(input_ids=ids).logits[0]
        hook.remove()
        found.append((x_hat, x, cross_entropy(logits[1:-1], ids[0, 2:], reduction="none")))
    return [torch.cat(part).double() for part in zip(*found, strict=True)]


def test_every_cell_equals_the_plain_evaluation(planned, lm, rows):
    assert len(rows) == len(planned.cells) == 2 * (2 * 4 + 1 + 1 + 3)
    for cell, row in zip(planned.cells, rows, strict=True):
        x_hat, x, losses = plain(planned, lm, cell)
        asked = cell.splice
        assert (row["arm"], row["strategy"], row["quantile"]) == (cell.arm, *asked[::3])
        unexplained = (x_hat - x).var(dim=0, correction=0).sum()
        expected = 1 - unexplained / x.var(dim=0, correction=0).sum()
        assert row["explained_variance"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
        assert row["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
        assert (row["n_texts"], row["n_tokens"], row["n_targets"]) == (5, len(x), len(losses))
        assert row["delta_loss_low"] <= row["delta_loss_high"]


def test_all_permuted_is_the_full_match_and_none_is_the_earlier_sae_with_the_later_bias(
    planned, lm, rows
):
    """Equation 6 at its ends."""
    at = {(pair_of(r), r["arm"], r["strategy"], r["quantile"]): r for r in rows}
    for pair in PAIRS:
        for strategy in ("permute", "permute_raw"):
            none, some, every, full = (at[pair, "a", strategy, q] for q in (0.0, 0.4, 1.0, None))
            assert {k: v for k, v in every.items() if k != "quantile"} == {
                k: v for k, v in full.items() if k != "quantile"
            }
            assert none["explained_variance"] != some["explained_variance"]
            previous = at[pair, "none", "reconstruct_previous", None]
            # the biases differ by a constant, which has no variance
            assert none["explained_variance"] == pytest.approx(previous["explained_variance"])
            assert none["loss"] != previous["loss"]


def test_what_several_ask_for_is_evaluated_once(planned):
    permutes = [s for s in planned.plan.splices if s.strategy.startswith("permute")]
    # of each pair: a by both strategies at q = 0.4 and whole, q = 0 once, b whole; like_a nothing
    assert len(permutes) == 2 * (2 * 2 + 1 + 1)
    assert len(planned.plan.matched) == 2 * 2
    assert len(planned.plan.splices) == 2 * (6 + 3)


def test_two_sets_of_saes_share_what_needs_none(planned):
    """Set y has other SAEs than x, set z those of x in all layers, set v in one."""
    x = {key.layer: sae for key, sae in planned.saes.items()}
    y = {n: dataclasses.replace(sae, origin=SaeOrigin(n, "y", "")) for n, sae in x.items()}
    sets = {"x": x, "y": y, "z": x, "v": {0: x[0], 1: y[1]}}
    saes = {SaeKey(name, n): of_set[n] for name, of_set in sets.items() for n in (0, 1)}
    pairs = tuple(Pair.of_layers(0, 1, name) for name in sets)
    match = planned.matches.by_arm["b"][PAIRS[0]]
    matches = MatchSet(pairs, {"b": dict.fromkeys(pairs, match)})
    plan, cells = plan_splices(saes, matches, {"b": ARMS["b"]}, STRATEGIES)
    assert len(cells) == 4 * 4
    assert list(plan.saes) == [("x", 0), ("x", 1), ("y", 0), ("y", 1)], "each is encoded once"
    found = {
        name: [c.evaluated for c in cells if c.splice.pair.source.suite == name] for name in sets
    }
    assert found["z"] == found["x"]
    b, previous, current, drop = range(4)
    assert found["y"][drop] == found["x"][drop]
    assert found["v"][current] == found["y"][current]
    assert len({found[name][b] for name in "xyv"}) == 3
    assert len({found[name][previous] for name in "xyv"}) == 3, "at a pair of its own"
    assert len(plan.matched) == 3


def test_a_set_that_shares_saes_has_the_same_numbers(planned, lm, batches, tmp_path):
    x = {key.layer: sae for key, sae in planned.saes.items()}
    y = {n: dataclasses.replace(sae, origin=SaeOrigin(n, "y", "")) for n, sae in x.items()}
    sets = {"x": x, "v": {0: x[0], 1: y[1]}}  # the same numbers under two names
    saes = {SaeKey(name, n): of_set[n] for name, of_set in sets.items() for n in (0, 1)}
    pairs = tuple(Pair.of_layers(0, 1, name) for name in sets)
    match = planned.matches.by_arm["b"][PAIRS[0]]
    matches = MatchSet(pairs, {"b": dict.fromkeys(pairs, match)})
    plan, cells = plan_splices(saes, matches, {"b": ARMS["b"]}, STRATEGIES)
    sums = evaluate_texts(plan, lm, {"t": batches}, TrainerSpec(accelerator="cpu"), tmp_path)
    tables = Tables(plan, sums, Intervals())
    for rows in (
        tables.strategies(cells)["strategies"],
        tables.activations(matches)["activations"],
    ):
        half = len(rows) // 2
        one, other = (
            [{**r, "source_suite": "", "target_suite": ""} for r in part]
            for part in (rows[:half], rows[half:])
        )
        assert one == other
    layers = tables.layers(list(saes))
    of_x, of_v = ([{**row, "suite": ""} for row in part] for part in (layers[:2], layers[2:]))
    assert of_x == of_v


def test_delta_loss_is_against_the_same_tokens_of_the_original(lm, rows):
    losses = []
    for text in TEXTS:
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids[:9]
        ids = torch.tensor([[lm.tokenizer.bos_token_id, *ids]])
        logits = lm.model(input_ids=ids).logits[0]
        losses.append(cross_entropy(logits[1:-1], ids[0, 2:], reduction="none"))
    original = torch.cat(losses).mean().item()
    for row in rows:
        assert row["loss_original"] == pytest.approx(original, rel=1e-5)
        assert row["delta_loss"] == pytest.approx(row["loss"] - original, abs=1e-6)


def test_contrasts_switch_one_thing(planned, sums):
    """Equal matches differ by nothing, whatever text is left out."""
    tables = Tables(planned.plan, {"t": sums}, Intervals()).strategies(planned.cells)
    rows = {(*(r[k] for k in ("source_layer", "arm", "strategy", "against_arm", "against_strategy",
                              "quantile")),): r for r in tables.rows("contrasts")}  # fmt: skip
    assert len(tables.rows("contrasts")) == len(rows) == 2 * (4 + 3 + 10 * 3)
    strategies = {(r["source_layer"], r["arm"], r["strategy"], r["quantile"]): r
                  for r in tables.rows("strategies")}  # fmt: skip
    for (start, arm, strategy, against, other, quantile), row in rows.items():
        expected = (
            strategies[start, arm, strategy, quantile]["delta_loss"]
            - strategies[start, against, other, None if against == "none" else quantile][
                "delta_loss"
            ]
        )
        assert row["delta_loss_difference"] == pytest.approx(expected, abs=1e-9)
        if (arm, against, strategy) == ("a", "like_a", "permute"):
            assert row["delta_loss_difference_low"] == row["delta_loss_difference_high"] == 0
        assert arm != "none"
        assert against == "none" or (arm == against) != (strategy == other)


def test_co_activation_equals_counting_by_hand(planned, lm, sums):
    hidden = {layer: [] for layer in planned.plan.layers}
    for text in TEXTS:
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids[:9]
        ids = torch.tensor([[lm.tokenizer.bos_token_id, *ids]])
        seen, _ = lm.capture(ids, planned.plan.layers)
        for layer, x in seen.items():
            hidden[layer].append(x[0, 1:])
    states = {key: torch.cat(hidden[key.layer]) for key in planned.saes}
    active = {key: planned.saes[key].encode(x) > 0 for key, x in states.items()}
    tables = Tables(planned.plan, {"t": sums}, Intervals())
    rows = tables.activations(planned.matches)["activations"]
    assert [row["dataset"] for row in rows] == ["t", "all"] * len(PAIRS) * len(ARMS)
    for row in rows:
        pair = Pair.of_layers(row["source_layer"], row["target_layer"])
        match = planned.matches.by_arm[row["arm"]][pair]
        own, partner = active[pair.source], active[pair.target][:, partners(match)]
        both = (own & partner).sum().item()
        assert row["matching_score"] == pytest.approx(both / own.sum().item())
        assert row["n_live"] + row["n_dead"] == own.shape[1]
        assert torch.equal(tables.fired(pair.source), own.sum(dim=0))
        for n, one in zip((3, 5), tables.entries(pair, match, [3, 5]), strict=True):
            together, fired = int((own & partner)[:, n].sum()), int(own[:, n].sum())
            either = int((own | partner)[:, n].sum())
            assert one["matching_score"] == pytest.approx(together / fired if fired else 0)
            assert one["jaccard"] == pytest.approx(together / either if either else 0)
            assert (one["n_fired_source"], one["n_fired_target"]) == (
                fired,
                int(partner[:, n].sum()),
            )
            assert one["jaccard_low"] <= one["jaccard_high"]
    for key, row in zip(planned.saes, tables.layers(list(planned.saes)), strict=True):
        assert row["mean_l0"] == pytest.approx(active[key].sum().item() / len(states[key]))
        assert row["n_dead"] == int((~active[key].any(dim=0)).sum())
        norms = torch.linalg.vector_norm(states[key], dim=1)
        assert row["mean_norm"] == pytest.approx(norms.mean().item())


def test_batch_size_does_not_change_the_sums(planned, lm, sums, tmp_path):
    whole = tokenise(TextSet("t", tuple(TEXTS)), lm, 10).batches(5)
    other = evaluated(planned, lm, whole, tmp_path, batch_size=5)
    for name in names(sums):
        torch.testing.assert_close(other[name], sums[name], rtol=1e-4, atol=1e-3)


def test_an_evaluation_goes_on_where_it_stopped(planned, lm, batches, sums, tmp_path, monkeypatch):
    """Sums after a break are bit for bit those of an unbroken evaluation."""
    done = []
    real = splice.evaluate_batch

    def breaking(*arguments):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments)

    monkeypatch.setattr(splice, "evaluate_batch", breaking)
    with pytest.raises(BaseException):  # noqa: B017 - Lightning turns the interrupt into an exit
        evaluated(planned, lm, batches, tmp_path)
    monkeypatch.setattr(splice, "evaluate_batch", real)
    first = (tmp_path / "0.safetensors").stat().st_mtime_ns
    resumed = evaluated(planned, lm, batches, tmp_path)
    assert (tmp_path / "0.safetensors").stat().st_mtime_ns == first
    for name in names(sums):
        assert torch.equal(resumed[name], sums[name]), name
    monkeypatch.setattr(splice, "evaluate_batch", breaking)  # a finished one is not begun again
    evaluated(planned, lm, batches, tmp_path)


def test_sums_are_shared_by_what_determines_them(planned, lm, batches, tmp_path):
    spec = TrainerSpec(accelerator="cpu")
    other = dataclasses.replace(planned.plan, splices=dict(list(planned.plan.splices.items())[:2]))
    files = []
    for plan, tokens in (
        (planned.plan, {"t": batches}),
        (planned.plan, {"another name": batches}),
        (other, {"t": batches}),
        (planned.plan, {"t": batches[:1]}),
    ):
        evaluate_texts(plan, lm, tokens, spec, tmp_path)
        files.append(len(list(tmp_path.glob("*.safetensors"))))
    assert files == [3, 3, 6, 6]


def test_a_damaged_file_of_sums_is_made_again(planned, lm, batches, tmp_path, caplog):
    whole = evaluated(planned, lm, batches, tmp_path)["n_tokens"]
    path = tmp_path / "1.safetensors"
    path.write_bytes(b"x" * 100)
    again = evaluated(planned, lm, batches, tmp_path)["n_tokens"]
    assert torch.equal(again, whole)
    assert f"{path} is damaged" in caplog.text


def test_a_model_that_is_spread_over_devices_gives_the_same_sums(
    planned, batches, sums, tiny, tmp_path
):
    """Half of its blocks fetch their weights from disk, by a forward that must be left in pair."""
    pytest.importorskip("accelerate")
    whole = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
    spread = dict.fromkeys([*whole, "model.layers.0", "model.layers.1"], "cpu")
    spread |= {"model.layers.2": "disk", "model.layers.3": "disk"}
    lm = LmSource(str(tiny / "lm"), "tiny", device_map=spread).load()
    assert lm.is_dispatched
    assert next(lm.blocks[3].parameters()).is_meta
    forwards = [block.forward for block in lm.blocks]
    assert "forward" in vars(lm.blocks[3])
    other = evaluated(planned, lm, batches, tmp_path)
    for name in names(sums):
        assert torch.equal(other[name], sums[name]), name
    assert [block.forward for block in lm.blocks] == forwards


def test_halves_of_a_batch_are_joined_as_the_whole(planned, lm, batches):
    batch = batches[0]
    whole = planned.plan(lm, batch)
    parts = (batch.ids, batch.counts, batch.lengths)
    halves = (planned.plan(lm, TokenBatch(*(part[n] for part in parts))) for n in ([0], [1]))
    joined = planned.plan.join(*halves, 1)
    for name, value in whole.items():
        torch.testing.assert_close(joined[name], value, rtol=1e-4, atol=1e-3)
