"""Names of version 0.1 that have changed. Each is refused, with the line to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saematch.core.errors import InputError

KEYS = {
    "assignment": "matcher",
    "matching": "objective",
    "tasks": "evaluations",
    "starts": "pairing.starts",
    "reach": "pairing.reach",
    "strategies": "evaluations.skipping.strategies",
    "paths": "evaluations.paths",
}
"""Old and new names of settings and groups."""
EVALUATIONS = {"evaluate": "co_activation,skipping", "activations": "co_activation"}
"""Old names of evaluations, and the new names, joined by commas."""
TASKS = ("collect", "train_saes")
"""Values of ``tasks`` that are now values of ``task``."""
CLASSES = {
    "saematch.cli.Begun": "saematch.app.launching.Begun",
    "saematch.data.hub": "saematch.texts.hub",
    "saematch.data.texts": "saematch.texts.sources",
    "saematch.evals.intervals": "saematch.evaluate.intervals",
    "saematch.evaluate.paths.PathSpec": "saematch.evaluate.paths.Paths",
    "saematch.evals.runner": "saematch.texts.trainer",
    "saematch.judge.model": "saematch.chat.model",
    "saematch.matching.assignment": "saematch.matching.matchers",
    "saematch.matching.objectives.Parts": "saematch.matching.objectives.parts.Parts",
    "saematch.run.tracking": "saematch.runs.tracking",
    "saematch.sae.disk": "saematch.sae.sources.disk",
    "saematch.sae.planted": "saematch.sae.sources.planted",
    "saematch.sae.released": "saematch.sae.sources.released",
    "saematch.sae.selection": "saematch.sae.sources.selection",
    "saematch.sae.source": "saematch.sae.sources.source",
    "saematch.sae.training_state": "saematch.training.state",
    "saematch.tasks.collect": "saematch.training.collect",
    "saematch.tasks.judged": "saematch.judge.design",
    "saematch.tasks.paths.PathSpec": "saematch.evaluate.paths.Paths",
    "saematch.tasks.stand_in": "saematch.sae.stand_in",
    "saematch.tracking": "saematch.runs.tracking",
}
"""Old and new paths of modules and classes that a preset's ``_target_`` may name."""

_SETTING = re.compile(r"([+~]*)([\w./@]+)=(.*)", re.DOTALL)
_DELETED = re.compile(r"~(\w+)")
_REFERENCE = re.compile(r"\$\{(" + "|".join(KEYS) + r")\b")
"""A value that refers to a setting by an old name, as ``${matching}``."""


def refuse_old_names(settings: Sequence[str]) -> None:
    """Refuse settings of a command line that use an old name; the error names the new one."""
    for setting in settings:
        if sentence := renamed(setting):
            raise InputError(sentence)


def refuse_old_presets(config: Mapping[str, Any]) -> None:
    """Refuse a composed configuration in which a preset uses an old name."""
    for key in ("evaluations", *KEYS):
        if key in config and (sentence := renamed(f"{key}={_as_text(config[key])}")):
            raise InputError(f"a preset has {sentence}")
    for key, value in _leaves(config):
        if arm := re.match(r"(arms\..+?)\.assignment(?![^.])", key):
            raise InputError(
                f"a preset has {arm[0]}: 'assignment' is now 'matcher': write {arm[1]}.matcher"
            )
        if reference := _REFERENCE.search(str(value)):
            new = _REFERENCE.sub(lambda old: "${" + KEYS[old[1]], str(value))
            raise InputError(
                f"a preset has {key}: {value}: {reference[1]!r} is now {KEYS[reference[1]]!r}: "
                f"write {new}"
            )
        if key.endswith("_target_") and (path := _new_class(str(value))):
            raise InputError(f"{key}={value}: the class has moved: write _target_: {path}")


def renamed(setting: str) -> str | None:
    """Return a sentence about a setting that uses an old name, None if it does not.

    The sentence has the old name, the new name and the setting to write instead.
    """
    deleted = _DELETED.fullmatch(setting)
    if deleted and deleted[1] in KEYS:
        return f"{setting}: {deleted[1]!r} is now {KEYS[deleted[1]]!r}: write ~{KEYS[deleted[1]]}"
    parsed = _SETTING.fullmatch(setting)
    if parsed is None:
        return None
    sign, key, value = parsed.groups()
    top, *fields = key.split(".")
    if key in ("tasks", "evaluations"):  # below it, values are no names of evaluations
        return _renamed_evaluations(setting, key, value)
    if top == "arms" and len(fields) > 1 and fields[1] == "assignment":
        return _sentence(
            setting, "assignment", sign + ".".join([top, fields[0], "matcher", *fields[2:]]), value
        )
    if top in ("starts", "reach"):
        if value == "null":
            return f"{setting}: {top!r} is now {KEYS[top]!r}: write pairing=neighbours"
        starts = value if top == "starts" else "[...]"
        reach = "" if top == "starts" else f" pairing.reach={value}"
        new = f"pairing=starts pairing.starts={starts}{reach}"
        return f"{setting}: {top!r} is now {KEYS[top]!r}: write {new}"
    group, at, package = top.partition("@")
    if group in KEYS:
        if at:  # the rest is the package
            fields = ["matcher" if field == "assignment" else field for field in fields]
        new = ".".join([KEYS[group] + at + package, *fields])
        return _sentence(setting, group, sign + new, value)
    return None


def _sentence(setting: str, old: str, key: str, value: str) -> str:
    return f"{setting}: {old!r} is now {KEYS[old]!r}: write {key}={value}"


def _renamed_evaluations(setting: str, key: str, value: str) -> str | None:
    names = re.findall(r"\w+", value)
    task = next((name for name in names if name in TASKS), None)
    if key == "tasks" and task is not None:
        return f"{setting}: 'tasks' is now 'task': write task={task}"
    new = re.sub(r"\[([^\]]*)\]", lambda lists: f"[{_evaluations(lists[1])}]", value)
    new = new if "[" in new else f"[{_evaluations(new)}]"
    if key == "tasks":
        return f"{setting}: 'tasks' is now 'evaluations': write evaluations={new}"
    old = next((name for name in names if name in EVALUATIONS), None)
    if old is not None:
        return f"{setting}: {old!r} is now {EVALUATIONS[old]!r}: write evaluations={new}"
    if "match" in names:
        return f"{setting}: 'match' is always done: write evaluations={new}"
    return None


def _evaluations(names: str) -> str:
    """Return a list of evaluations in their new names; matching is no longer an evaluation."""
    listed = [name for name in re.findall(r"\w+", names) if name not in ("match", "null")]
    new = ",".join(EVALUATIONS.get(name, name) for name in listed)
    return ",".join(dict.fromkeys(filter(None, new.split(","))))


def _new_class(path: str) -> str | None:
    """Return the new dotted path of a class that had ``path``; None if it has not moved."""
    for old, new in CLASSES.items():
        if path == old or path.startswith(f"{old}."):
            return new + path.removeprefix(old)
    return None


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every setting that is not a mapping."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _as_text(value: Any) -> str:
    """Return a preset's value as on the command line, with nested values left out."""
    if isinstance(value, Mapping):
        return "..."
    return "null" if value is None else re.sub(r"['\s]", "", str(value))
