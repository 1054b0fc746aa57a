import logging

import pytest
import torch

from conftest import tiny_overrides
from saematch.app.configuration import build
from saematch.core.pairs import layers_text
from saematch.runs.opening import device_text
from saematch.runs.run import run
from saematch.texts.trainer import TrainerSpec


def test_a_run_begins_with_its_device_its_saes_and_its_work(tiny, tmp_path, caplog):
    settings = [*tiny_overrides(tiny), "evaluations=[co_activation]", "layers=[0,1,2]",
                "figures=[]", "logger=none", "arms=[folded,random]", "model.dtype=auto",
                f"cache={tmp_path}"]  # fmt: skip
    experiment, config = build(settings)
    with caplog.at_level(logging.INFO, "saematch"):
        run(experiment, config, tmp_path / "run")
    lines = [record.message for record in caplog.records]
    opening = lines[: next(n for n, line in enumerate(lines) if line.startswith("time: ")) + 1]
    assert len(opening) < 8
    device, saes, *_, sizes, time = opening
    assert device.startswith("device: ") and device.endswith((" in float32", " in bfloat16"))
    assert saes.startswith("SAEs: 3 (") and "layers 0 to 2); 2 pairs in 2 arms (folded, ra" in saes
    assert sizes.startswith("SAE sizes: ")
    assert time.startswith("time: 4 matches, then 3 batches of texts; ")
    assert sum(line.startswith("texts: ") for line in opening) == 1


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([3], "layer 3"),
        ([4, 2, 3], "layers 2 to 4"),
        ([0, 1], "layers 0, 1"),
        ([0, 2, 5], "layers 0, 2, 5"),
    ],
)
def test_layers(layers, text):
    assert layers_text(layers) == text


def test_the_device_has_a_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_text(TrainerSpec()) == "CPU (no CUDA device)"
    assert device_text(TrainerSpec("cpu")) == "cpu (trainer.accelerator=cpu)"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert device_text(TrainerSpec()) == "GPU (NVIDIA H100)"
