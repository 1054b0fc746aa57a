"""The zoo's card: the numbers in ``card.json``, and ``README.md`` made from them."""

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
    """Collect everything the card says; ``parameters`` is the language model's count."""
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
    """Count documents and characters of each wheel and kind of text."""
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
    parts = [_INTRO, _language_model(numbers), _saes(numbers), _sources(numbers), _again(numbers)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


_INTRO = """
# The embedded zoo

A small language model and SAEs on every one of its blocks, so that `saematch` runs, offline, right
after installation. It is made to be learnt on and tested with: a finding on it is a finding about a
small model trained within an hour, and wants checking on a large one. But for the floor under the
thresholds, told below, nothing was chosen by what matching makes of it. This card is written by
`python -m saematch.zoo.build` from `card.json`.
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
parameters, stored in bfloat16. Trained on {model["tokens_seen"]:,} tokens
({recipe["steps"]:,} steps of {recipe["batch"]} sequences of {recipe["context"]} tokens; Muon for
the blocks' matrices, AdamW for the rest), seed {recipe["seed"]}.

Next-token loss on the held-out texts, each cut at {recipe["context"]} tokens, the prediction made
at BOS left out:

{_table(["kind", "loss (nats a token)", "tokens"], losses)}

Mean norm of the hidden state (`resid_post`) on the same tokens, by layer:

{_table([str(layer) for layer in range(len(norms))], [norms])}
"""


def _saes(numbers: dict[str, Any]) -> str:
    stored = numbers["activations"]["stored"]
    some = next(iter(numbers["saes"].values()))[0]
    training = some["training"]
    most = max(row["raised_thresholds"] for rows in numbers["saes"].values() for row in rows)
    intro = f"""
## SAEs (`saes/<family>/width_<features>/l0_<target>/layer_<l>/`)

JumpReLU SAEs on `resid_post` of every block, in SAELens' format
(`sae_lens.SAE.load_from_disk(folder)`); weights in float16, thresholds in float32, decoder vectors
of norm 1. Trained with SAELens on {stored:,} hidden states of training tokens (BOS left out; no
SAE saw one twice), in batches of {training["batch"]}, with a quadratic loss on the number of active
features. Each feature started in the direction of a random hidden state from the mean, with the
threshold at which it fires on `target / features` of the tokens. After training, two things were
done to the thresholds. Those below a fifth of the SAE's median (`raised_thresholds` in its
`cfg.json`, at most {most} in one SAE) were raised to it: features that are active on nearly every
token lose their threshold in training, and decoding in folded scale would multiply such a feature
by several hundred when its partner has kept its own. Then one common factor on all thresholds
(`threshold_factor`) brought the mean L0 on training tokens to the target; a factor far from 1 costs
explained variance.

- `chain`: each later layer's SAE goes on training from the previous layer's final state, Adam's
  moments included. Every shipped SAE then has its features in a random order of its own, and
  `truth/<l>-<l+1>.safetensors` says which feature came from which. The truth is by descent:
  a feature may have changed its meaning on the way.
- `mixed`: as `chain`, but at each later layer a random quarter of the features starts afresh. The
  truth holds the others only.
- `independent`: each layer from its own seed. Nobody knows the truth.

In the tables: explained variance is `1 - sum Var(x_hat - x) / sum Var(x)` on the held-out texts,
variances over tokens, BOS left out; L0 is the mean number of active features a token there; dead
features were never active on {some["dead_tokens"]:,} training tokens; spread is the standard
deviation of an SAE's thresholds over their mean; samples are the hidden states seen, in
brackets with those that the SAEs before it in the chain had seen.
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
texts are whole documents that training never saw, cut at 3,000 characters; they are shipped, the
training texts are not. The licences' own words are in `licences/`.

{_table(head, body)}
"""


def _again(numbers: dict[str, Any]) -> str:
    seconds = numbers["seconds"]
    took = "; ".join(f"{stage} {value / 60:.0f} min" for stage, value in seconds.items())
    return f"""
## How to make it again

`make zoo`, or `python -m saematch.zoo.build --help`. It fetches the wheels above with pip and
trains everything on a CPU; a run that was cut off goes on where it stopped. Seeds fix every draw,
but the last digits differ between machines and versions of PyTorch. It took, on two busy CPU cores:
{took or "(not recorded)"}.
"""


def _table(head: list[str], body: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
