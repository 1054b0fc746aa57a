"""Fixtures: a tiny language model with SAEs and texts, in the formats of real ones."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import pickle
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lightning.pytorch  # noqa: F401
import numba  # noqa: F401
import numpy as np
import pandas as pd  # noqa: F401
import pyarrow.compute  # noqa: F401
import pytest
import rich.table  # noqa: F401
import scipy.optimize
import scipy.stats  # noqa: F401
import torch
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from PIL import Image
from safetensors.torch import save_file

# The packages above are imported here, because the hook that checks types would make Python compile
# those again that a module of saematch imports first
from saematch.core.files import PRESETS
from saematch.core.memory import keep_freed_memory
from saematch.core.store import write, write_note
from saematch.lm.states import states_name
from saematch.matching.solver.compiling import NOTICE
from saematch.sae.params import SaeOrigin, SaeParams

OURS = (str(PRESETS), "hydra.conf", "")
"""Paths of Hydra's sources of presets; the empty path is that of structured configurations."""

NOTICE.given = True  # a line that only the first run of a clone would log
keep_freed_memory()
gc.set_threshold(100_000, 20, 50)  # by default, garbage collection takes a seventh of the time


@pytest.fixture(scope="session", autouse=True)
def _signals_arrive():
    """Handle the signals that ``nohup`` and background jobs of a shell ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _quick_composition() -> Iterator[None]:
    """Skip Hydra's repeated work, which takes half of a small run.

    Each preset of the package is read once, and equal lists of them are merged once. Hydra composes
    every command line twice, since a preset might set ``hydra.mode``, and prepares interpolations
    in the defaults of every preset. No preset has either, so both are skipped.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
        interpolations = defaults_list._create_interpolation_map
        patch.setattr(
            defaults_list, "_create_interpolation_map",
            lambda choices, defaults, added: interpolations(choices, defaults, added)
            if any(default.is_interpolation() for default in defaults) else None,
        )  # fmt: skip
        merge = ConfigLoaderImpl._compose_config_from_defaults_list
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", _merged_once(merge))
        Plugins.instance()  # registers the sources
        for source in map(SourcesRegistry.instance().resolve, ("file", "pkg")):
            for name in ("load_config", "is_config"):
                patch.setattr(source, name, _read_once(getattr(source, name)))
        gc.collect()
        gc.freeze()  # imported objects live until the end
        yield


def _read_once(read: Callable) -> Callable:
    """Return a reader of presets that reads those of the package and of Hydra only once.

    It stores them as pickles, from which a copy takes a sixth of the time of ``deepcopy``.
    """
    pickles: dict[tuple[str, str], bytes] = {}

    def read_once(self: object, config_path: str) -> object:
        if self.path not in OURS:
            return read(self, config_path)
        key = (self.path, config_path)
        if key not in pickles:
            pickles[key] = pickle.dumps(read(self, config_path))
        return pickle.loads(pickles[key])

    return read_once


def _merged_once(merge: Callable) -> Callable:
    """Return a function that merges equal lists of presets of the package and of Hydra once."""
    pickles: dict[str, bytes] = {}

    def merged_once(self: object, defaults: list, repo: CachingConfigRepository) -> object:
        if any(source.path not in OURS for source in repo.get_sources()):
            return merge(self, defaults, repo)
        key = repr([(d.config_path, d.package, d.parent, d.is_self, d.primary) for d in defaults])
        if key not in pickles:
            pickles[key] = pickle.dumps(merge(self, defaults, repo))
        return pickle.loads(pickles[key])

    return merged_once


@pytest.fixture(autouse=True)
def _answers_unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait until replies are on disk, since no test cuts the power."""
    from saematch.chat import replies as store

    def connect(*arguments: object, **settings: object) -> sqlite3.Connection:
        database = sqlite3.connect(*arguments, **settings)
        database.execute("pragma synchronous=off")
        return database

    monkeypatch.setattr(store, "sqlite3", SimpleNamespace(**{**vars(sqlite3), "connect": connect}))


@pytest.fixture(autouse=True)
def real_figures() -> Iterator[Callable[[], None]]:
    """Write files of figures with one pixel, since real ones take most of a figure's time.

    The figures are still drawn once, for their layout. The value is a function that makes the rest
    of the test write real files.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with pytest.MonkeyPatch.context() as patch:
        for canvas, name in (
            (FigureCanvasAgg, "print_png"),
            (FigureCanvasPdf, "print_pdf"),
            (FigureCanvasSVG, "print_svg"),
        ):
            patch.setattr(canvas, name, _one_pixel(getattr(canvas, name)))
        yield patch.undo


def _one_pixel(write: Callable) -> Callable:
    """Return a writer of figures that writes one pixel into files; buffers get the figure."""
    pixel = io.BytesIO()
    Image.new("L", (1, 1)).save(pixel, "PNG")

    def written(canvas: object, target: object, **settings: object) -> None:
        if isinstance(target, Path):
            target.write_bytes(pixel.getvalue())
        else:
            write(canvas, target, **settings)

    return written


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close a test's connections to LLMs, even if the test calls ``monkeypatch.undo``."""
    from saematch.chat.client import OpenAiServer

    servers, init = [], OpenAiServer.__init__

    def recorded(self, spec):
        init(self, spec)
        servers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenAiServer, "__init__", recorded)
        yield
    for server in servers:
        server.close()


D_MODEL, N_FEATURES, N_LAYERS = 16, 24, 4
TEXTS = [
    "the quick brown fox jumps over the lazy dog and runs away",
    "features of a layer carry on into the next layer of the model",
    "a short one here",
    "permutations pair the features of one layer with those of another layer",
    "every text begins with a special token that no metric counts",
]


def random_sae(
    seed: int, d_model: int = D_MODEL, n_features: int = N_FEATURES, layer: int = 0
) -> SaeParams:
    """Return a random JumpReLU SAE whose decoder norms differ from 1."""
    g = torch.Generator().manual_seed(seed)
    return SaeParams(
        W_enc=torch.randn(d_model, n_features, generator=g) / d_model**0.5,
        b_enc=0.1 * torch.randn(n_features, generator=g),
        W_dec=torch.randn(n_features, d_model, generator=g),
        b_dec=torch.randn(d_model, generator=g),
        threshold=torch.empty(n_features).log_normal_(-1.0, 0.5, generator=g),
        activation="jumprelu",
        origin=SaeOrigin(layer=layer, release="random", sae_id=str(seed)),
    )


def write_sae(folder: Path, sae: SaeParams, model_name: str = "tiny", layer: int = 0) -> None:
    """Write an SAE in SAELens' format."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": "jumprelu",
        "d_in": sae.d_model,
        "d_sae": sae.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "model_name": model_name,
            "hook_name": f"blocks.{layer}.hook_resid_post",
            "l0": 5.0,
        },
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    tensors = {name: getattr(sae, name).contiguous() for name in names}
    save_file(tensors, folder / "sae_weights.safetensors")


def write_store(folder: Path, states: np.ndarray, n_layers: int) -> None:
    """Write the same hidden states for every layer, in the format of a collection."""
    folder.mkdir(parents=True)
    rows = {states_name(n): torch.from_numpy(states).clone() for n in range(n_layers)}
    write(folder / "00000.safetensors", rows)
    write_note(folder / "store.json", {})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``lm/``, ``saes/layer_<l>/`` and ``texts.jsonl``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<bos>", "<unk>"]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=90, special_tokens=special))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", unk_token="<unk>"
    )
    wrapped.save_pretrained(root / "lm")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=D_MODEL,
        intermediate_size=32,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        initializer_range=0.4,  # hidden states large enough for features to fire
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(root / "lm")
    for layer in range(N_LAYERS):
        write_sae(root / f"saes/layer_{layer}", random_sae(layer), layer=layer)
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (root / "texts.jsonl").write_text("\n".join(lines))
    return root


def tiny_overrides(tiny: Path) -> list[str]:
    """Return command-line settings that run the tiny model in a few seconds."""
    return [
        f"model.path={tiny / 'lm'}",
        "model.name=tiny",
        "sae=disk",
        f'sae.path="{tiny}/saes/layer_{{layer}}"',
        "dataset=local",
        f"dataset.paths=[{tiny / 'texts.jsonl'}]",
        "dataset.n_texts=5",
        "trainer.batch_size=2",
        "trainer.accelerator=cpu",
        "judge=none",
    ]


@pytest.fixture
def cli(tiny, tmp_path, monkeypatch, capsys):
    """Run the command line in an empty folder; return (exit message or None, output).

    Figures take most of a small run's time, so they are drawn only if a test requests them.
    """
    from saematch.app.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")

    def run(*arguments, base=None):
        settings = ["figures=[]", *tiny_overrides(tiny)] if base is None else base
        monkeypatch.setattr(sys, "argv", ["saematch", *settings, *arguments])
        root = logging.getLogger()
        handlers = list(root.handlers)
        try:
            main()
            message = None
        except SystemExit as exit:
            message = exit.code
        finally:
            for handler in set(root.handlers) - set(handlers):
                handler.close()
                root.removeHandler(handler)
        return message, capsys.readouterr()

    return run
