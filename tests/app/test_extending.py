"""The package of docs/extending.md and extending_texts.md, written from the pages and run."""

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch

from saematch.core.match import Match
from saematch.core.results import Results
from saematch.lm.source import LmSource
from saematch.sae.sources.source import ZooSaes
from saematch.texts.calibration import Calibration
from saematch.texts.sources import ZooTexts
from saematch.texts.tokens import tokenise

DOCS = Path(__file__).parents[2] / "docs"
PAGES = "".join((DOCS / name).read_text("utf-8") for name in ("extending.md", "extending_texts.md"))
FILE = re.compile(r"^`([\w/]+\.\w+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^saematch (.*)$", re.MULTILINE)
RUN, EXPERIMENT, SWEEP, REPRODUCTION, ACTIVITY = COMMAND.findall(PAGES)
SMALL = ("dataset.n_texts=4", "dataset.max_tokens=16", "intervals.n_replicates=10", "logger=none",
         "trainer.accelerator=cpu")  # fmt: skip


@pytest.fixture
def command(cli, tmp_path, monkeypatch):
    """Write the files of the pages; return a function that runs one of their commands."""
    for name, text in FILE.findall(PAGES):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return lambda line, *settings: cli(*shlex.split(line), *SMALL, *settings, base=[])


def test_a_run_uses_the_matcher_the_objective_and_the_evaluation(command):
    assert command(RUN, "run_id=a")[0] is None
    folder = Path("outputs/match/a")
    results = Results.load(folder / "results.json")
    assert results.config["matcher"] == {"_target_": "my_package.matcher.Top", "k": 3}
    assert results.config["objective"]["temperature"] == 0.1
    match, _ = Match.load(folder / "matches/folded/3-4.safetensors")
    assert len(match.rows) == 3 * match.n_source
    sums = match.weights.reshape(-1, 3).sum(dim=1)
    assert sums.min() == pytest.approx(1)
    partners = {row["arm"]: row["effective_partners"] for row in results.tables.rows("matches")}
    per_feature = 1 / match.weights.reshape(-1, 3).square().sum(dim=1)
    assert partners["folded"] == pytest.approx(float(per_feature.mean()))
    assert partners["random"] == 1
    assert results.metrics["effective_partners/folded"] == partners["folded"]
    assert results.tables.column("effective_partners").label == "effective partners"


def calibration_counts():
    """Return numbers of calibration tokens: with two features active, and with each of them."""
    lm, saes = LmSource("zoo", "saematch-zoo").load(), ZooSaes("chain", 1024, 20)
    counts = torch.zeros(1024, 1024, dtype=torch.float64)
    of_sides = torch.zeros(2, 1024, dtype=torch.float64)
    text_sets = ZooTexts(("prose", "docs", "code"), 4, 16, 0).load()
    tokens = {of_set.name: tokenise(of_set, lm, 16) for of_set in text_sets}
    for halves in Calibration(0.5, 0).split(tokens).values():
        for batch in halves.calibration.batches(1):
            states, _ = lm.capture(batch.ids, (3, 4))
            active = [saes.load(n).encode(states[n][batch.counts]) > 0 for n in (3, 4)]
            counts += active[0].double().T @ active[1].double()
            of_sides += torch.stack([side.double().sum(dim=0) for side in active])
    return counts, of_sides


def kept_of(match, scores):
    """Return the scores of a match's entries, and 0 for all other pairs."""
    kept = torch.zeros_like(scores)
    kept[match.rows, match.columns] = scores[match.rows, match.columns]
    assert (kept > 0).sum() == len(match.rows)
    return kept


def test_objectives_read_activity_on_calibration_texts(command):
    counts, (of_source, of_target) = calibration_counts()
    sizes = of_source[:, None] + of_target
    dice = torch.where(counts >= 2, 2 * counts / sizes.clamp(min=1), 0.0)
    for objective, scores in (("together", counts), ("dice", dice)):
        settings = ("arms=[folded]", f"objective={objective}")
        assert command(ACTIVITY, f"run_id={objective}", *settings)[0] is None
        path = Path(f"outputs/match/{objective}/matches/folded/3-4.safetensors")
        kept = kept_of(Match.load(path)[0], scores)
        # Any of several equal scores may be kept
        torch.testing.assert_close(kept.sum(dim=1), scores.topk(3, dim=1).values.sum(dim=1))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("matcher.k=0", "matcher.k=0 must be greater than or equal to 1"),
        ("evaluations.partners.order=0.0", "evaluations.partners.order=0.0 must be greater than 0"),
    ],
)
def test_a_setting_of_the_package_is_refused_by_its_name(command, setting, sentence):
    message, _ = command(EXPERIMENT, setting)
    assert message.startswith(f"saematch: {sentence}")


def test_an_evaluation_on_texts(command):
    assert command(EXPERIMENT, "run_id=a", "layers=[3,4,5]")[0] is None
    assert command(EXPERIMENT, "run_id=b", "layers=[3,4,5]", "sae_memory=1e-6")[0] is None
    runs = [Results.load(Path(f"outputs/top_partners/{name}/results.json")) for name in "ab"]
    whole, in_parts = (run.tables.rows("matches") for run in runs)
    texts = ZooTexts(("prose", "docs", "code"), 4, 16, 0).load()
    lm = LmSource("zoo", "saematch-zoo").load()
    read = partial(lm.tokenizer, add_special_tokens=False)
    words = [read(text).input_ids for of_set in texts for text in of_set.texts]
    ids = [[lm.bos_id, *of_text][:16] for of_text in words]
    for row, again in zip(whole, in_parts, strict=True):
        layers = (row["source_layer"], row["target_layer"])
        states = [lm.capture(torch.tensor([text]), layers)[0] for text in ids]
        source, target = (torch.cat([s[layer][0, 1:] for s in states]) for layer in layers)
        cosine = torch.nn.functional.cosine_similarity(source, target).mean().item()
        assert row["state_cosine"] == pytest.approx(cosine, rel=1e-5)
        assert row["state_cosine_low"] < row["state_cosine"] < row["state_cosine_high"]
        assert again["state_cosine"] == pytest.approx(row["state_cosine"], rel=1e-6)
    assert runs[0].metrics["state_cosine/folded"] == pytest.approx(
        sum(row["state_cosine"] for row in whole if row["arm"] == "folded") / 2
    )


def test_a_sweep(command):
    assert command(SWEEP)[0] is None
    runs = [Results.load(Path(f"outputs/sweeps/my_sweep/{n}/results.json")) for n in range(2)]
    assert [run.config["matcher"]["k"] for run in runs] == [1, 3]
    assert runs[0].metrics["effective_partners/folded"] == 1
    comparison = Path("outputs/sweeps/my_sweep/comparison/comparison.csv").read_text()
    assert "effective_partners" in comparison
    assert "state_cosine" in comparison


def test_a_reproduction_shows_the_experiment(command):
    assert command(REPRODUCTION)[0] is None
    page = Path("outputs/reproduction/index.md").read_text()
    assert "## top_partners" in page
    assert "![top_partners, chain: matching]" in page
