"""The zoo's card: the numbers in ``card.json``, and the ``README.md`` with them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from saematch.training.collect import open_store
from saematch.zoo.activations import ActivationRecipe, HeldOut
from saematch.zoo.corpus import KINDS, PACKAGES, PROSE
from saematch.zoo.dictionaries import Family
from saematch.zoo.language_model import LmRecipe


def card_numbers(
    work: Path,
    saes: Path,
    families: tuple[Family, ...],
    held_out: HeldOut,
    held_out_states: Path,
    parameters: int,
) -> dict[str, Any]:
    """Return the numbers in the card; ``parameters`` is the number of the language model's."""
    recipe = LmRecipe()
    store = open_store(held_out_states)
    norms = [
        float(torch.linalg.vector_norm(torch.cat(store.layer(layer).parts).float(), dim=1).mean())
        for layer in range(recipe.n_layers)
    ]
    seconds = work / "seconds.json"
    return {
        "language_model": {
            "parameters": parameters,
            "tokens_seen": recipe.steps * recipe.batch * recipe.context,
            "held_out_loss": held_out.loss,
            "held_out_tokens": held_out.tokens,
            "recipe": asdict(recipe),
        },
        "hidden_state_norm": norms,
        "activations": asdict(ActivationRecipe())
        | {"stored": len(open_store(work / "activations").layer(0))},
        "saes": {family.name: _family(saes / family.name) for family in families},
        "texts": _texts(work),
        "seconds": json.loads(seconds.read_text()) if seconds.exists() else {},
    }


def _family(folder: Path) -> list[dict[str, Any]]:
    configs = [json.loads(path.read_text()) for path in folder.glob("layer_*/cfg.json")]
    return sorted((c["metadata"] for c in configs), key=lambda m: m["layer"])


def _texts(work: Path) -> list[dict[str, Any]]:
    """Return the number of documents and characters of each wheel and kind of text."""
    documents: Counter[tuple[str, str]] = Counter()
    characters: Counter[tuple[str, str]] = Counter()
    held_out: Counter[tuple[str, str]] = Counter()
    for name in ("train", "held_out"):
        with (work / f"{name}.jsonl").open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                key = (row["source"], row["kind"])
                if name == "held_out":
                    held_out[key] += 1
                else:
                    documents[key] += 1
                    characters[key] += len(row["text"])
    return [
        {
            "title": wheel.title,
            "requirement": wheel.requirement,
            "licence": wheel.licence,
            "kind": kind,
            "training_documents": documents[wheel.title, kind],
            "training_characters": characters[wheel.title, kind],
            "held_out_texts": held_out[wheel.title, kind],
        }
        for wheel in (*PROSE, *PACKAGES)
        for kind in KINDS
        if documents[wheel.title, kind] or held_out[wheel.title, kind]
    ]


def card_text(numbers: dict[str, Any]) -> str:
    """Return the card as Markdown."""
    parts = [_INTRO, _language_model(numbers), _saes(numbers), _sources(numbers), _rebuild(numbers)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


_INTRO = """
# The embedded zoo

A small language model and SAEs on each of its blocks, so that `saematch` runs offline right after
installation. It is for learning and testing: a finding on it concerns a small model that was
trained within an hour, and should be checked on a large one. No setting was chosen by the results
of matching, except the minimum threshold described below. `python -m saematch.zoo.build` writes
this card from `card.json`.
"""


def _language_model(numbers: dict[str, Any]) -> str:
    model = numbers["language_model"]
    recipe = model["recipe"]
    losses = [
        [kind, f"{loss:.3f}", f"{model['held_out_tokens'][kind]:,}"]
        for kind, loss in model["held_out_loss"].items()
    ]
    norms = [f"{norm:.0f}" for norm in numbers["hidden_state_norm"]]
    return f"""
## Language model (`lm/`)

Llama architecture: {recipe["n_layers"]} blocks, d_model {recipe["d_model"]}, d_mlp
{recipe["d_mlp"]}, {recipe["n_heads"]} heads, tied embedding, byte-level BPE vocabulary of
{recipe["vocab_size"]:,} (the tokenizer was trained on the same texts); {model["parameters"]:,}
parameters, stored in bfloat16. It was trained on {model["tokens_seen"]:,} tokens
({recipe["steps"]:,} steps of {recipe["batch"]} sequences of {recipe["context"]} tokens; Muon for
the blocks' matrices, AdamW for the rest), seed {recipe["seed"]}.

Next-token loss on the held-out texts, each cut at {recipe["context"]} tokens, without the
prediction at BOS:

{_table(["kind", "loss (nats per token)", "tokens"], losses)}

Mean norm of the hidden state (`resid_post`) on the same tokens, by layer:

{_table([str(layer) for layer in range(len(norms))], [norms])}
"""


def _saes(numbers: dict[str, Any]) -> str:
    stored = numbers["activations"]["stored"]
    first = next(iter(numbers["saes"].values()))[0]
    training = first["training"]
    most_raised = max(row["raised_thresholds"] for rows in numbers["saes"].values() for row in rows)
    intro = f"""
## SAEs (`saes/<family>/width_<features>/l0_<target>/layer_<l>/`)

JumpReLU SAEs on `resid_post` of every block, in SAELens' format
(`sae_lens.SAE.load_from_disk(folder)`). Weights are float16, thresholds float32, and decoder
vectors have norm 1. SAELens trained them on {stored:,} hidden states of training tokens (without
BOS; no hidden state occurs twice in the training of an SAE), in batches of {training["batch"]},
with a quadratic loss on the number of active features. Each feature started in the direction of a
random hidden state from the mean, with the threshold at which it is active on `target / features`
of the tokens. After training, the thresholds were changed twice:

1. Thresholds below a fifth of the SAE's median were raised to it (`raised_thresholds` in its
   `cfg.json`, at most {most_raised} in an SAE). Training lowers the thresholds of features that are
   active on nearly every token. Decoding in folded scale would multiply such a feature by several
   hundred if its partner has a normal threshold.
2. All thresholds were multiplied by one factor (`threshold_factor`) that makes the mean L0 on
   training tokens the target. A factor far from 1 lowers explained variance.

There are three families:

- `chain`: the SAE of each later layer continues the training of the previous layer's SAE, including
  Adam's moments. Every shipped SAE has its features in its own random order, and
  `truth/<l>-<l+1>.safetensors` has the true match. Truth means descent: a feature may have changed
  its meaning in training.
- `mixed`: like `chain`, but at each later layer a random quarter of the features is initialised
  again. The truth has only the other features.
- `independent`: each layer is trained from its own seed. The truth is unknown.

Columns of the tables:

- explained variance: `1 - sum Var(x_hat - x) / sum Var(x)` on the held-out texts, with variances
  over tokens and without BOS;
- L0: mean number of active features per token on them;
- dead: features that were never active on {first["dead_tokens"]:,} training tokens;
- spread: standard deviation of the SAE's thresholds, divided by their mean;
- samples: hidden states in training, and in brackets their number including the earlier SAEs of the
  chain.
"""
    return "\n\n".join(
        [intro.strip(), *(_family_table(name, rows) for name, rows in numbers["saes"].items())]
    )


def _family_table(name: str, rows: list[dict[str, Any]]) -> str:
    head = [
        "layer",
        "explained variance",
        "L0",
        "dead",
        "mean threshold",
        "spread",
        "samples",
        "seed",
    ]
    body = [
        [
            str(row["layer"]),
            f"{row['explained_variance']:.3f}",
            f"{row['l0']:.1f}",
            str(row["dead_features"]),
            f"{row['threshold_mean']:.1f}",
            f"{row['threshold_spread']:.2f}",
            f"{row['samples']:,} ({row['samples_with_earlier_layers']:,})",
            str(row["training"]["seed"]),
        ]
        for row in rows
    ]
    return f"### `{name}`\n\n{_table(head, body)}"


def _sources(numbers: dict[str, Any]) -> str:
    body = [
        [
            row["title"],
            f"`{row['requirement']}`",
            row["kind"],
            f"{row['training_documents']:,}",
            f"{row['training_characters']:,}",
            str(row["held_out_texts"]),
            row["licence"],
        ]
        for row in numbers["texts"]
    ]
    head = ["text", "wheel", "kind", "training documents", "characters", "held out", "licence"]
    return f"""
## Texts (`texts/`, `licences/`)

Three kinds: prose, docstrings (`docs`) and source code without docstrings (`code`). The held-out
texts are documents that are not in the training texts, cut at 3,000 characters. They are shipped;
the training texts are not. The texts of the licences are in `licences/`.

{_table(head, body)}
"""


def _rebuild(numbers: dict[str, Any]) -> str:
    seconds = numbers["seconds"]
    times = "; ".join(f"{stage} {value / 60:.0f} min" for stage, value in seconds.items())
    return f"""
## How to build it again

Run `make zoo` or `python -m saematch.zoo.build` (`--help` lists the options). It downloads the
wheels above with pip and trains everything on a CPU; an interrupted build continues where it
stopped. Seeds fix all random numbers, but the last digits differ between machines and versions of
PyTorch. Times on two busy CPU cores: {times or "(not recorded)"}.
"""


def _table(head: list[str], body: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
