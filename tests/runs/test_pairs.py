"""Runs on pairs of any two SAEs: one layer, two widths, a given list, two language models."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import N_LAYERS, TEXTS, random_sae, write_sae
from matches import partners
from saematch.core.match import Match
from saematch.core.results import Results
from saematch.lm.source import LmSource
from saematch.matching.arm import Arm
from saematch.matching.matchers import Optimal
from saematch.matching.objectives.parts import Parts
from saematch.sae.sources.disk import SaeFolders

QUIET = ("logger=none", "run_id=a", "intervals.n_replicates=5", "arms=[folded,random]")


@pytest.fixture
def add_suite(tmp_path):
    """Write SAEs and return the settings that make them a suite."""

    def add(name, seed=50, **sizes):
        for layer in range(N_LAYERS):
            sae = random_sae(seed + layer, **sizes)
            write_sae(tmp_path / f"{name}/layer_{layer}", sae, layer=layer)
        path = f'suites.{name}.path="{tmp_path}/{name}/layer_{{layer}}"'
        return f"+sae@suites.{name}=disk", path

    return add


@pytest.fixture
def noisy_model(tiny, tmp_path):
    """Write the tiny model with noise on its weights; return the settings that load it."""
    folder = tmp_path / "noisy"
    shutil.copytree(tiny / "lm", folder)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: value + 0.02 * torch.randn(value.shape, generator=generator)
        for name, value in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def model_of(suite, folder):
    return (
        f"+model@models.{suite}=local",
        f"models.{suite}.path={folder}",
        f"models.{suite}.name=tiny",
    )


def results_of(tmp_path, folder="match/a"):
    return Results.load(tmp_path / "outputs" / folder / "results.json")


def plain_score(models, saes, layers, match):
    """Return the matching score over all texts, from plain hidden states and encodings."""
    hits = fired = 0
    columns = partners(match)
    for text in TEXTS:
        active = []
        for lm, sae, layer in zip(models, saes, layers, strict=True):
            ids = lm.tokenizer(text, add_special_tokens=False).input_ids
            ids = torch.tensor([[lm.tokenizer.bos_token_id, *ids]])
            seen = []
            hook = lm.blocks[layer].register_forward_hook(lambda m, i, o, s=seen: s.append(o))
            lm.model(input_ids=ids)
            hook.remove()
            hidden = seen[0][0] if seen[0].dim() == 3 else seen[0]
            active.append(sae.encode(hidden[1:]) > 0)
        source, target = active
        has = columns >= 0
        together = target[:, columns.clamp(min=0)] & has & source
        hits, fired = hits + int(together.sum()), fired + int(source.sum())
    return hits / fired


def row_of(rows, **values):
    (row,) = [row for row in rows if all(row[name] == value for name, value in values.items())]
    return row


@pytest.mark.parametrize("n_features", [24, 36])
def test_two_saes_of_one_layer(cli, tiny, tmp_path, add_suite, n_features):
    suite = add_suite("wide", n_features=n_features)
    message, output = cli(*QUIET, *suite, "pairing=same_layer", "pairing.target=wide", "layers=[2]")
    assert message is None
    tables = results_of(tmp_path).tables
    row = row_of(tables.rows("matches"), arm="folded")
    ends = ("source_suite", "source_layer", "target_suite", "target_layer")
    assert [row[name] for name in ends] == ["default", 2, "wide", 2]
    assert row["recall"] is None

    sources = [
        SaeFolders(f"{folder}/layer_{{layer}}") for folder in (tiny / "saes", tmp_path / "wide")
    ]
    saes = [source.load(2) for source in sources]
    match = Arm("threshold", Parts(), Optimal()).match(*saes)
    kept, _ = Match.load(tmp_path / "outputs/match/a/matches/folded/default-wide/2-2.safetensors")
    assert kept.hash == match.hash
    lm = LmSource(str(tiny / "lm"), "tiny").load()
    score = plain_score([lm, lm], saes, [2, 2], match)
    assert 0 < score < 1
    assert row["matching_score"] == pytest.approx(score, rel=1e-12)

    (refusal,) = tables.rows("refused")
    assert (refusal["evaluation"], refusal["arm"]) == ("skipping", None)
    assert refusal["reason"] == "both SAEs are of layer 2, so no block lies between them"
    assert "skipping leaves out 2→2 default-wide: both SAEs are of layer 2" in output.out
    assert "strategies" not in tables
    assert row_of(tables.rows("means"), arm="folded", metric="matching_score", dataset="all")[
        "suites"
    ] == ("default-wide")


def test_listed_pairs_keep_their_order_and_may_go_back(cli, tmp_path, add_suite):
    suite = add_suite("wide", n_features=36)
    pairs = "pairing.pairs=[3:1,1:3,default/2:wide/0,wide/0:2]"
    message, _ = cli(*QUIET, *suite, "pairing=listed", pairs)
    assert message is None
    tables = results_of(tmp_path).tables
    pairs_of_rows = [(r["source_suite"], r["source_layer"], r["target_suite"], r["target_layer"])
             for r in tables.rows("matches") if r["arm"] == "folded"]  # fmt: skip
    assert pairs_of_rows == [
        ("default", 3, "default", 1),
        ("default", 1, "default", 3),
        ("default", 2, "wide", 0),
        ("wide", 0, "default", 2),
    ]
    skipped = {(r["source_layer"], r["target_suite"]) for r in tables.rows("strategies")}
    assert skipped == {(1, "default"), (0, "default")}
    refused = {(r["source_layer"], r["reason"].split(",")[0]) for r in tables.rows("refused")}
    assert refused == {
        (3, "layer 1 comes before layer 3"),
        (2, "layer 0 comes before layer 2"),
    }
    back, forth = (
        Match.load(tmp_path / f"outputs/match/a/matches/folded/{name}.safetensors")[0]
        for name in ("3-1", "1-3")
    )
    assert back.hash == forth.inverse().hash
    layers = {(row["suite"], row["layer"]) for row in tables.rows("layers")}
    assert layers == {("default", 1), ("default", 2), ("default", 3), ("wide", 0)}
    names = results_of(tmp_path).metrics
    assert {"mse_W_dec/folded", "mse_W_dec/folded/default-wide"} <= names.keys()


def test_an_arm_that_composes_refuses_two_suites(cli, tiny, tmp_path, add_suite):
    pairs = "pairing.pairs=[0:2,3:0,0:wide/2]"
    message, _ = cli("logger=none", "run_id=a", *add_suite("wide"), "arms=[folded,composed]",
                     "pairing=listed", pairs, "figures=null", "judge=overlap")  # fmt: skip
    assert message is None
    tables = results_of(tmp_path).tables
    refusal = row_of(tables.rows("refused"), evaluation="matching")
    assert (refusal["arm"], refusal["target_suite"]) == ("composed", "wide")
    assert "default and wide are two" in refusal["reason"]
    arms = [row["arm"] for row in tables.rows("matches")]
    assert arms == ["folded", "composed", "folded", "composed", "folded"]
    source = SaeFolders(f"{tiny}/saes/layer_{{layer}}")
    arm = Arm("threshold", Parts(), Optimal())
    steps = [arm.match(source.load(n), source.load(n - 1)) for n in (3, 2, 1)]
    folder = tmp_path / "outputs/match/a/matches"
    back = Match.load(folder / "composed/3-0.safetensors")[0]
    assert back.hash == steps[0].compose(steps[1]).compose(steps[2]).hash


def test_saes_of_another_size_are_refused_by_pair_where_weights_decide(cli, tmp_path, add_suite):
    suite = add_suite("small", d_model=8)
    pairs = "pairing.pairs=[0:1,0:small/0]"
    message, _ = cli(*QUIET, *suite, "evaluations=[]", "pairing=listed", pairs)
    assert message is None
    tables = results_of(tmp_path).tables
    assert {row["target_suite"] for row in tables.rows("matches")} == {"default"}
    (refusal,) = tables.rows("refused")
    assert (refusal["evaluation"], refusal["arm"]) == ("matching", None)
    assert "different d_model (source: 16, target: 8)" in refusal["reason"]


def test_a_run_in_which_nothing_can_be_matched_is_refused(cli, tmp_path, add_suite):
    suite = add_suite("small", d_model=8)
    message, _ = cli(*QUIET, *suite, "evaluations=[]", "pairing=same_layer", "pairing.target=small")
    assert "no pair of SAEs can be matched; layer 0 and layer 0 of small" in message
    assert "different d_model (source: 16, target: 8)" in message
    assert not (tmp_path / "outputs/match/a").exists()


def test_paths_end_where_a_pair_is_refused(cli, tiny, tmp_path):
    shutil.copytree(tiny / "saes", tmp_path / "saes")
    write_sae(tmp_path / "saes/layer_3", random_sae(3, d_model=8), layer=3)
    message, _ = cli(*QUIET, f'sae.path="{tmp_path}/saes/layer_{{layer}}"', "evaluations=[paths]")
    assert message is None
    tables = results_of(tmp_path).tables
    refused = {(r["evaluation"], r["source_layer"]) for r in tables.rows("refused")}
    assert refused == {("matching", 2), ("paths", 2)}
    assert {row["source_layer"] for row in tables.rows("paths")} == {0, 1}


def test_two_language_models(cli, tiny, tmp_path, add_suite, noisy_model):
    suite = (*add_suite("other"), *model_of("other", noisy_model))
    pairs = "pairing.pairs=[1:3,other/1:other/3,2:other/1]"
    message, _ = cli(*QUIET, *suite, "pairing=listed", pairs)
    assert message is None
    results = results_of(tmp_path)
    tables = results.tables
    models = [LmSource(str(folder), "tiny").load() for folder in (tiny / "lm", noisy_model)]
    sources = [
        SaeFolders(f"{folder}/layer_{{layer}}") for folder in (tiny / "saes", tmp_path / "other")
    ]
    matches = tmp_path / "outputs/match/a/matches/folded"
    for label, ends, layers in (
        ("1-3", (0, 0), (1, 3)),
        ("other/1-3", (1, 1), (1, 3)),
        ("default-other/2-1", (0, 1), (2, 1)),
    ):
        names = [("default", "other")[end] for end in ends]
        row = row_of(
            tables.rows("matches"), arm="folded", source_suite=names[0], target_suite=names[1]
        )
        match = Match.load(matches / f"{label}.safetensors")[0]
        saes = [sources[end].load(layer) for end, layer in zip(ends, layers, strict=True)]
        score = plain_score([models[end] for end in ends], saes, layers, match)
        assert row["matching_score"] == pytest.approx(score, rel=1e-12), label
    assert {row["source_suite"] for row in tables.rows("strategies")} == {"default", "other"}
    loss = {row["source_suite"]: row["loss_original"] for row in tables.rows("strategies")}
    assert loss["default"] != loss["other"]
    (refusal,) = tables.rows("refused")
    assert refusal["reason"] == "default and other have SAEs of two language models"
    norms = {(row["suite"], row["layer"]): row["mean_norm"] for row in tables.rows("layers")}
    assert norms["default", 1] != norms["other", 1]
    other = results.provenance["models"]["other"]
    assert other["path"] == str(noisy_model)
    assert other["revision"] == models[1].revision != results.provenance["model"]["revision"]

    alone, _ = cli("logger=none", "run_id=b", "intervals.n_replicates=5", "arms=[folded,random]",
                   f"model.path={noisy_model}", f'sae.path="{tmp_path}/other/layer_{{layer}}"',
                   "pairing=listed", "pairing.pairs=[1:3]")  # fmt: skip
    assert alone is None
    same = [row for row in tables.rows("strategies") if row["source_suite"] == "other"]
    single = results_of(tmp_path, "match/b").tables.rows("strategies")
    values = [[(row["explained_variance"], row["loss"]) for row in rows] for rows in (same, single)]
    assert values[0] == values[1]


def test_explanations_come_from_each_suites_own_model(cli, tiny, tmp_path, noisy_model):
    other = f'sae.path="{tiny}/saes/layer_{{layer}}"'
    suite = ("+sae@suites.other=disk", f"suites.other.{other[4:]}")
    judged = ("judge=overlap", "explain=own", "evaluations=[explain]", "pairing=listed")
    pairs = "pairing.pairs=[1:3,other/1:other/3]"
    message, _ = cli(*QUIET, *suite, *model_of("other", noisy_model), *judged, pairs)
    assert message is None
    message, _ = cli(*QUIET, "run_id=b", f"model.path={noisy_model}", other, *judged,
                     "pairing.pairs=[1:3]")  # fmt: skip
    assert message is None

    def explained(folder, suite):
        rows = results_of(tmp_path, folder).tables.rows("judgements")
        return {
            (row[f"{end}_layer"], row[f"{end}_feature"]): row[f"{end}_explanation"]
            for row in rows
            for end in ("source", "target")
            if row["source_suite"] == suite and row["role"] == "pair"
        }

    of_noisy, of_other = explained("match/b", "default"), explained("match/a", "other")
    assert of_noisy.keys() == of_other.keys()
    assert of_noisy == of_other
    of_default = explained("match/a", "default")
    shared = of_default.keys() & of_other.keys()
    assert any(of_default[feature] != of_other[feature] for feature in shared)


def test_one_suite_on_two_models_is_counted_apart(cli, tiny, tmp_path, noisy_model):
    suite = ("+sae@suites.other=disk", f'suites.other.path="{tiny}/saes/layer_{{layer}}"')
    message, _ = cli(*QUIET, *suite, *model_of("other", noisy_model), "pairing=same_layer",
                     "pairing.target=other", "layers=[2]")  # fmt: skip
    assert message is None
    row = row_of(results_of(tmp_path).tables.rows("matches"), arm="folded")
    sae = SaeFolders(f"{tiny}/saes/layer_{{layer}}").load(2)
    models = [LmSource(str(folder), "tiny").load() for folder in (tiny / "lm", noisy_model)]
    same = Match.from_columns(torch.arange(24), 24)
    score = plain_score(models, [sae, sae], [2, 2], same)
    assert 0 < score < 1
    assert row["matching_score"] == pytest.approx(score, rel=1e-12)


def test_models_that_split_texts_differently(cli, tmp_path, add_suite, noisy_model):
    path = noisy_model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:20]
    path.write_text(json.dumps(tokenizer))
    suite = (*add_suite("other"), *model_of("other", noisy_model))
    pairs = "pairing.pairs=[1:3,other/1:other/3,2:other/1]"
    message, _ = cli(*QUIET, *suite, "pairing=listed", pairs)
    assert message is None
    tables = results_of(tmp_path).tables
    refused = {row["evaluation"]: row for row in tables.rows("refused")}
    assert refused.keys() == {"co_activation", "skipping", "profile"}
    assert "split the texts into different tokens" in refused["co_activation"]["reason"]
    spanning = row_of(
        tables.rows("matches"), arm="folded", target_suite="other", source_suite="default"
    )
    assert spanning["matching_score"] is None
    assert spanning["mse_W_dec"] is not None
    n_tokens = {row["source_suite"]: row["n_tokens"] for row in tables.rows("strategies")}
    assert n_tokens["other"] > n_tokens["default"]

    message, _ = cli(*QUIET, "run_id=b", *suite, "pairing=same_layer", "pairing.target=other")
    assert "split the texts into different tokens" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("+model@models.wide=local", "models.wide.path=x"), "models.wide: there is no such suite"),
        (("+model@models.default=local", "models.default.path=x"), "models.default: the default"),
    ],
)
def test_a_model_belongs_to_a_suite(cli, settings, words):
    message, _ = cli(*QUIET, *settings)
    assert words in message


def test_paths_from_a_feature_that_one_suite_lacks_are_refused(cli, add_suite):
    suite = add_suite("narrow", n_features=8)
    message, _ = cli(*QUIET, *suite, "evaluations=[paths]", "evaluations.paths.features=[8]")
    assert (
        "evaluations.paths.features holds 8, but layer 0 of narrow has features 0 to 7" in message
    )


def test_a_suite_that_is_called_as_a_pair_of_suites_is_refused(cli, add_suite):
    suites = [setting for name in ("a", "b", "a-b") for setting in add_suite(name)]
    pairs = "pairing.pairs=[a/0:b/1,a-b/0:0]"
    message, _ = cli(*QUIET, *suites, "evaluations=[]", "pairing=listed", pairs)
    assert "a-b with a-b and of a with b would both be called a-b" in message
