"""``saematch --help``: commands, choices and settings, which ``conf/config.yaml`` explains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from saematch.app.commands import COMMANDS
from saematch.app.text import two_columns
from saematch.core.files import PRESETS

INTRODUCTION = """\
saematch: follow the features of a language model from layer to layer.

  saematch [SETTING=VALUE ...]     do a run: match SAEs and evaluate the matches
  saematch COMMAND [...]           do a command; COMMAND --help explains it
  saematch +experiment=NAME        do an experiment of the paper, or one of ours

A run writes its results to outputs/<name>/<run_id>/.
"""
EXAMPLES = (
    ("saematch", "the embedded model, in a minute"),
    ("saematch +experiment=skip_layers", "the paper's main experiment"),
    ("saematch layers=[2,3,4] objective=decoder", "some layers, another objective"),
    ("saematch arms=[folded,cosine,written_share] evaluations=[verify]",
     "compare ways to match: do partners switch off?"),
    ("saematch sae=disk 'sae.path=\"saes/layer_{layer}\"' model.path=my_model dataset=local "
     "dataset.paths=[texts.jsonl]", "your own SAEs, model and texts"),
    ("saematch run_id=a", "name the run; the same command continues it"),
    ("saematch --cfg job +experiment=paths", "print all settings of a run; do not run it"),
    ("saematch --config-dir my_presets +experiment=mine", "your own presets (docs/extending.md)"),
)  # fmt: skip
OPTIONS = (
    ("--help, --version", "this text; the version"),
    ("--cfg job", "print the run's configuration"),
    ("--multirun", "do a run for each value: saematch --multirun seed=0,1"),
    ("--config-dir DIR", "folder of your own presets"),
    ("-sc install=SHELL", "print the shell completion (bash, zsh, fish): eval \"$(saematch -sc "
     "install=bash)\""),
)  # fmt: skip


def help_text() -> str:
    """Return the help."""
    commands = [(f"{n} {c.usage}".strip(), c.purpose) for n, c in COMMANDS.items()]
    lines = (PRESETS / "config.yaml").read_text(encoding="utf-8").splitlines()
    of_task = _of_task()
    choices = [
        (f"{group}={of_task.get(group, default)}", f"{purpose}: {_presets(group)}")
        for group, default, purpose in groups(lines)
    ]
    return "\n".join([
        INTRODUCTION,
        "Commands", two_columns(commands),
        "Choices: GROUP=NAME, or GROUP=[NAME,...] for arms and evaluations",
        two_columns([*choices, ("+experiment=", f"an experiment: {_presets('experiment')}")]),
        "Settings: SETTING=VALUE", two_columns(settings(lines)),
        "Options", two_columns(OPTIONS),
        "Examples", two_columns(EXAMPLES),
    ])  # fmt: skip


def groups(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield each group of choices, its default, and the comment behind it in the defaults list."""
    for line in lines:
        entry = re.fullmatch(r"  - ([\w@]+): (\S+|\[.*\])\s+# (.*)", line)
        if entry:
            yield entry[1], entry[2].replace(" ", ""), entry[3]


def settings(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each setting with the comment above it.

    A setting in a mapping has its full name, and the mapping's comment comes first.
    """
    comment: list[str] = []
    section = ""
    for line in lines[lines.index("  - _self_") :]:
        if line.startswith("hydra:"):
            return
        if line.startswith("#"):
            comment.append(line.removeprefix("#").strip())
            continue
        entry = re.fullmatch(r"( *)(\w+):\s*(.*?)(?:\s+# (.*))?", line)
        text, comment = " ".join(comment), []
        if entry is None or entry[2] == "_target_":
            continue
        inside, name, value = bool(entry[1]), entry[2], entry[3]
        section = section if inside else name
        flat = re.match(r"\{_target_: [\w.]+, (.*)\}$", value)
        if flat:
            yield name, text
            yield from (
                (f"  {name}.{k}={v}", "") for k, v in re.findall(r"(\w+): ([^,]+)", flat[1])
            )
        elif inside or value not in ("", "{}"):
            shown = "" if value.startswith("${") else value
            yield (f"  {section}.{name}={shown}" if inside else f"{name}={shown}"), text
        else:
            yield name, text


def _of_task() -> dict[str, str]:
    """Return the defaults that ``task=match``, the default task, chooses."""
    text = (PRESETS / "task/match.yaml").read_text(encoding="utf-8")
    chosen = re.findall(r"- override /(\w+): (.+)", text)
    return {group: default.replace(" ", "") for group, default in chosen}


def _presets(group: str) -> str:
    folder: Path = PRESETS / group.partition("@")[0]
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
