"""The evaluation against a plain one: dense features, hooks, the whole model every time."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from conftest import N_LAYERS, TEXTS
from saematch.data.texts import TextSet
from saematch.data.tokens import tokenise
from saematch.evals.runner import TrainerSpec, evaluate
from saematch.evals.splice import Cell, SplicePlan
from saematch.lm.source import LmSource
from saematch.matching.assignment import Random
from saematch.matching.objectives import Parts
from saematch.sae.folding import fold
from saematch.sae.source import SaelensFolders
from saematch.tasks.evaluate import activation_rows, layer_rows, strategy_rows

CELLS = (
    Cell("a", "permute"),
    Cell("a", "permute_raw"),
    Cell("b", "permute"),
    Cell("none", "reconstruct_previous"),
    Cell("none", "reconstruct_current"),
    Cell("none", "drop"),
)


@pytest.fixture(scope="module")
def lm(tiny):
    return LmSource(str(tiny / "lm"), "tiny").load()


@pytest.fixture(scope="module")
def plan(tiny):
    source = SaelensFolders(f"{tiny}/saes/layer_{{layer}}")
    assert source.layers() == list(range(N_LAYERS))
    saes = {layer: source.load(layer) for layer in range(N_LAYERS)}
    pairs = ((0, 1), (1, 3))
    factors = [Parts().factors(saes[a], saes[b]) for a, b in pairs]
    matches = {name: tuple(Random(seed)(f) for f in factors) for name, seed in (("a", 1), ("b", 2))}
    return SplicePlan(pairs, saes, matches, CELLS)


@pytest.fixture(scope="module")
def totals(plan, lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation") / "t.safetensors"
    batches = tokenise(TextSet("t", tuple(TEXTS)), lm.tokenizer, 10, 2)
    assert len({batch.ids.shape for batch in batches}) > 1, "texts of several lengths"
    return evaluate(TrainerSpec(accelerator="cpu"), plan, lm, batches, "t", path, "key")


def plain(plan, lm, cell, place):
    """Return x_hat, x and the losses of each text, evaluated one by one."""
    earlier, later = plan.pairs[place]
    a, b = plan.saes[earlier], plan.saes[later]
    found = []
    for text in TEXTS:
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids[:9]
        ids = torch.tensor([[lm.tokenizer.bos_token_id, *ids]])
        hidden = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
        x_t = hidden[earlier + 1][0, 1:]
        seen = []
        hook = lm.blocks[later].register_forward_hook(lambda m, i, o, s=seen: s.append(o))
        lm.model(input_ids=ids)
        hook.remove()
        x = seen[0][0, 1:]
        if cell.strategy.startswith("permute"):
            by = {"permute": "threshold", "permute_raw": "decoder_norm"}[cell.strategy]
            features = fold(a, by).encode(x_t)
            x_hat = fold(b, by).decode(plan.matches[cell.arm][place].apply(features))
        else:
            x_hat = {
                "reconstruct_previous": a.reconstruct(x_t),
                "reconstruct_current": b.reconstruct(x),
                "drop": x_t,
            }[cell.strategy]
        replaced = torch.cat([seen[0][:, :1], x_hat[None]], dim=1)
        hook = lm.blocks[later].register_forward_hook(lambda m, i, o, r=replaced: r)
        logits = lm.model(input_ids=ids).logits[0]
        hook.remove()
        found.append((x_hat, x, cross_entropy(logits[1:-1], ids[0, 2:], reduction="none")))
    return [torch.cat(part).double() for part in zip(*found, strict=True)]


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("number", range(len(CELLS)))
def test_every_cell_equals_the_plain_evaluation(plan, lm, totals, place, number):
    x_hat, x, losses = plain(plan, lm, CELLS[number], place)
    rows = strategy_rows(plan, {"t": totals})
    row = rows[place * len(CELLS) + number]
    assert (row["arm"], row["strategy"]) == (CELLS[number].arm, CELLS[number].strategy)
    unexplained = (x_hat - x).var(dim=0, correction=0).sum()
    expected = 1 - unexplained / x.var(dim=0, correction=0).sum()
    assert row["explained_variance"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    assert row["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert row["n_tokens"] == len(x)
    assert row["n_targets"] == len(losses)


def test_delta_loss_is_against_the_same_tokens_of_the_original(plan, lm, totals):
    losses = []
    for text in TEXTS:
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids[:9]
        ids = torch.tensor([[lm.tokenizer.bos_token_id, *ids]])
        logits = lm.model(input_ids=ids).logits[0]
        losses.append(cross_entropy(logits[1:-1], ids[0, 2:], reduction="none"))
    original = torch.cat(losses).mean().item()
    for row in strategy_rows(plan, {"t": totals}):
        assert row["loss_original"] == pytest.approx(original, rel=1e-5)
        assert row["delta_loss"] == pytest.approx(row["loss"] - original, abs=1e-6)


def test_co_activation_equals_counting_by_hand(plan, lm, totals):
    hidden = {layer: [] for layer in plan.layers}
    for text in TEXTS:
        ids = lm.tokenizer(text, add_special_tokens=False).input_ids[:9]
        seen, _ = lm.capture(torch.tensor([[lm.tokenizer.bos_token_id, *ids]]), plan.layers)
        for layer, x in seen.items():
            hidden[layer].append(x[0, 1:])
    active = {k: plan.saes[k].encode(torch.cat(x)) > 0 for k, x in hidden.items()}
    rows = {
        (r["layer_from"], r["layer_to"], r["arm"]): r for r in activation_rows(plan, {"t": totals})
    }
    for place, (a, b) in enumerate(plan.pairs):
        for arm, matches in plan.matches.items():
            partner = active[b][:, matches[place].partners()]
            both = (active[a] & partner).sum().item()
            score = rows[a, b, arm]["matching_score"]
            assert score == pytest.approx(both / active[a].sum().item())
    for row in layer_rows(plan, {"t": totals}):
        of_layer = active[row["layer"]]
        assert row["mean_l0"] == pytest.approx(of_layer.sum().item() / len(of_layer))
        assert row["n_dead"] == int((~of_layer.any(dim=0)).sum())


def test_batch_size_does_not_change_the_sums(plan, lm, totals, tmp_path):
    batches = tokenise(TextSet("t", tuple(TEXTS)), lm.tokenizer, 10, 5)
    spec = TrainerSpec(accelerator="cpu", batch_size=5)
    other = evaluate(spec, plan, lm, batches, "t", tmp_path / "t.safetensors", "key")
    for name, tensor in totals.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-5, atol=1e-4)


def test_an_evaluation_goes_on_where_it_stopped(plan, lm, totals, tmp_path, monkeypatch):
    """Sums after a break are bit for bit those of an unbroken evaluation."""
    from saematch.evals import runner

    path = tmp_path / "t.safetensors"
    batches = tokenise(TextSet("t", tuple(TEXTS)), lm.tokenizer, 10, 2)
    monkeypatch.setattr(runner, "SAVE_SECONDS", 0.0)
    evaluated = []
    real = runner.evaluate_batch

    def breaking(plan, lm, batch, totals):
        if len(evaluated) == 1:
            raise KeyboardInterrupt
        evaluated.append(batch)
        real(plan, lm, batch, totals)

    monkeypatch.setattr(runner, "evaluate_batch", breaking)
    with pytest.raises(BaseException):  # noqa: B017 - Lightning turns the interrupt into an exit
        evaluate(TrainerSpec(accelerator="cpu"), plan, lm, batches, "t", path, "key")
    monkeypatch.setattr(runner, "evaluate_batch", real)
    resumed = evaluate(TrainerSpec(accelerator="cpu"), plan, lm, batches, "t", path, "key")
    for name, tensor in totals.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    monkeypatch.setattr(runner, "evaluate_batch", breaking)  # a finished one is not begun again
    evaluate(TrainerSpec(accelerator="cpu"), plan, lm, batches, "t", path, "key")
    with pytest.raises(BaseException):  # noqa: B017 - but sums of something else are not taken over
        evaluate(TrainerSpec(accelerator="cpu"), plan, lm, batches, "t", path, "other key")


def test_a_damaged_file_of_sums_is_refused(plan, lm, tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="damaged"):
        evaluate(TrainerSpec(accelerator="cpu"), plan, lm, (), "t", path, "key")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice on processes
def test_two_processes_give_the_sums_of_one(plan, lm, totals, tmp_path):
    """Three batches do not divide by two: none may be counted twice or left out."""
    spec = TrainerSpec(accelerator="cpu", devices=2, strategy="ddp_spawn")
    batches = tokenise(TextSet("t", tuple(TEXTS)), lm.tokenizer, 10, 2)
    assert len(batches) == 3
    other = evaluate(spec, plan, lm, batches, "t", tmp_path / "t.safetensors", "key")
    for name, tensor in totals.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-9, atol=1e-9)
