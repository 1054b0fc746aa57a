import json
from pathlib import Path

import numpy as np
import pytest

from conftest import write_store
from saematch.zoo.activations import HeldOut
from saematch.zoo.card import card_numbers, card_text
from saematch.zoo.dictionaries import Family, Folders, build_family
from saematch.zoo.language_model import LmRecipe


@pytest.mark.filterwarnings("ignore")  # SAELens' imports warn
def test_card_says_what_the_files_say(tmp_path: Path):
    family = Family("chain", 32, 4, 7, first_samples=1024, next_samples=1024)
    folders = Folders(*(tmp_path / name for name in ("activations", "held", "states", "saes")))
    states = 100 * np.random.default_rng(0).normal(size=(512, 16)).astype(np.float16)
    for folder in (folders.training, folders.held_out):
        write_store(folder, states, LmRecipe.n_layers)
    build_family(family, folders, 2)
    row = {"kind": "code", "text": "x = 1", "source": "SymPy"}
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    held_out = HeldOut(loss={"code": 2.5}, tokens={"code": 512})

    numbers = card_numbers(tmp_path, folders.out, (family,), held_out, folders.held_out, 1234)
    assert [row["layer"] for row in numbers["saes"][family.name]] == [0, 1]
    assert numbers["language_model"]["tokens_seen"] == 8_192_000
    norm = np.linalg.norm(states.astype(np.float32), axis=1).mean()
    assert abs(numbers["hidden_state_norm"][0] - norm) < 1e-2
    [text] = numbers["texts"]
    assert text["requirement"].startswith("sympy==")
    assert (text["training_documents"], text["held_out_texts"]) == (1, 1)

    card = " ".join(card_text(json.loads(json.dumps(numbers))).split())
    assert "1,234 parameters" in card
    assert "| code | 2.500 | 512 |" in card
    assert f"### `{family.name}`" in card
    assert "(not recorded)" in card
