from pathlib import Path

import numpy as np
import pytest
import torch

from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.training.collect import open_store
from saematch.zoo.activations import (
    ActivationRecipe,
    collect_held_out,
    collect_training,
)


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return LmSource(path=str(tiny / "lm"), name="tiny").load()


def test_training_states_are_those_of_windows_without_bos(model, tmp_path):
    stream = (2 + np.arange(80) % 30).astype(np.uint16)
    stream[[0, 13, 50]] = 0
    recipe = ActivationRecipe(tokens=80, context=16, batch=2, seed=0)
    collect_training(model, stream, tmp_path / "states", recipe)
    windows = torch.from_numpy(stream.reshape(5, 16).astype(np.int64))
    windows[:, 0] = 0
    with torch.inference_mode():
        hidden, _ = model.capture(windows, (1, 3))
    for layer in (1, 3):
        expected = hidden[layer][windows != 0].half().float()
        stored = torch.cat(open_store(tmp_path / "states").layer(layer).parts).float()
        assert stored.shape == expected.shape == (80 - 5 - 2, model.d_model)
        distances = torch.cdist(stored, expected)  # the windows come in random order
        for axis in (0, 1):
            assert distances.min(dim=axis).values.max() < 1e-2 * expected.norm(dim=1).min()


def test_held_out_states_and_loss_leave_bos_out(model, tmp_path):
    texts = {"prose": ["the quick brown fox", "a short one here"], "code": ["every text begins"]}
    held_out = collect_held_out(model, texts, tmp_path / "states", 5)
    encoded = {k: model.tokenizer(v, add_special_tokens=False).input_ids for k, v in texts.items()}
    kept = {k: [ids[:4] for ids in rows] for k, rows in encoded.items()}
    assert held_out.tokens == {k: sum(map(len, rows)) for k, rows in kept.items()}
    assert len(open_store(tmp_path / "states").layer(0)) == sum(held_out.tokens.values())

    ids = torch.tensor([[model.tokenizer.bos_token_id, *kept["code"][0]]])
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits[0, 1:-1]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 2:]).item()
    assert held_out.loss["code"] == pytest.approx(expected, rel=1e-4)
