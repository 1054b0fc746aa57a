"""``saematch saes``: list the released SAEs in SAELens' registry, and settings to load them."""

from __future__ import annotations

import argparse
import fnmatch
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import yaml

from saematch.app.saes_listing import Line, print_release, print_releases
from saematch.core.errors import InputError
from saematch.core.files import PRESETS
from saematch.lm.names import bare
from saematch.sae.sources.registry import RegisteredSae, Release, closest, releases

LAYER = re.compile(r"(layer_?|blocks\.|^l(?=\d))(\d+)")
"""Position of the layer's number in an id."""
WIDTH = re.compile(r"width[-_]([a-z0-9]+)|(?:^|[-_/])w?-?(\d+[kx])(?=$|[-_/.])", re.IGNORECASE)
SITES = {
    "transcoder": r"transcoder|\bclt\b",
    "resid_pre": r"resid[_-]pre",
    "resid_mid": r"resid[_-]mid",
    "mlp_out": r"[-_.]mlp|lxm|\d+m_\d+x",
    "attn": r"attn[-_]out|[-_]att\b|[-_]att[-_]|hook_z|lxa",
    "resid_post": r"resid[_-]post|\bres\b|[-_]res[-_]|lxr|sae-res-|l\d+r",
}
"""By site: pattern in the names of the SAEs that read it."""
KINDS = {
    "gemma_2": "JumpReLU",
    "gemma_3": "JumpReLU",
    "llama_scope": "JumpReLU (1 θ)",
    "llama_scope_r1_distill": "JumpReLU",
    "qwen_scope": "TopK",
    "goodfire": "ReLU",
    "connor_rob_hook_z": "ReLU",
    "deepseek_r1": "ReLU",
    "temporal": "temporal",
}
"""By loader of SAELens: the architecture of its releases. Other loaders read several ones."""
NAMED = {
    "matryoshka": "matryoshka",
    "batch_?topk": "BatchTopK",
    "topk": "TopK",
    "gated": "gated",
    "vanilla|standard|panneal": "ReLU",
}
"""By pattern in a name: the architecture."""


class Preset(NamedTuple):
    """A preset, for example one in ``conf/sae`` that loads released SAEs."""

    name: str
    fields: dict[str, Any]


class Presets(NamedTuple):
    """Presets that settings of a release choose."""

    saes: list[Preset]
    """Presets in ``conf/sae`` that name a release."""
    models: list[Preset]
    """Presets in ``conf/model``."""
    settings: dict[str, str]
    """By preset of SAEs: the preset in ``conf/setting`` that chooses it and its model."""


def main(arguments: Sequence[str]) -> None:
    """Run the command. ``InputError`` with similar names if nothing matches the pattern."""
    parser = argparse.ArgumentParser(
        prog="saematch saes",
        description="List the released SAEs in SAELens' registry, without a network: their "
        "layers, widths and mean L0, whether Neuronpedia explains them, and the settings of "
        "saematch that load them.",
    )
    parser.add_argument(
        "pattern", nargs="?", default="",
        help="part of the name of a release, a model or a repository, or a glob such as "
        "'gemma-scope-2-*-res*'; the full name of a release lists its SAEs (default: all "
        "releases)",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="list all releases that match")
    parser.add_argument("--ids", action="store_true", help="list each SAE of the matching releases")
    options = parser.parse_args(arguments)
    matches = matching(options.pattern)
    if not matches:
        names = [*releases(), *(release.model for release in releases().values())]
        raise InputError(
            f"no release, model or repository matches {options.pattern!r}; "
            f"{closest(options.pattern, names)}"
        )
    files = presets()
    if options.ids or options.pattern in releases():
        for release in [releases()[options.pattern]] if not options.ids else matches:
            print_release(line(release, files), list(rows(release)))
    else:
        lines = [line(release, files) for release in matches]
        print_releases(sorted(lines, key=prominence), options.all)


PAPER = ("gemma-scope-2b-pt-res-canonical", "gemma-scope-2b-pt-res", "llama_scope_lxr_8x")
"""Releases that the paper uses."""
SITE_ORDER = ("resid_post", "resid_pre", "resid_mid", "mlp_out", "attn", "transcoder")


def prominence(line: Line) -> tuple[int, bool, int]:
    """Return the place of a release in a listing, for ``sorted``.

    The paper's releases come first, then those that a preset loads, and the residual stream before
    other sites. Otherwise the registry's order stays.
    """
    rank = PAPER.index(line.release) if line.release in PAPER else len(PAPER)
    site = line.site.partition(",")[0]
    of_site = SITE_ORDER.index(site) if site in SITE_ORDER else len(SITE_ORDER)
    return rank, "sae=saelens" in line.settings or not line.settings, of_site


def matching(pattern: str) -> list[Release]:
    """Return the releases whose name, model or repository has the pattern or matches the glob."""
    pattern = pattern.lower()
    glob = pattern if re.search(r"[*?\[]", pattern) else f"*{pattern}*"
    return [
        release
        for release in releases().values()
        if any(
            fnmatch.fnmatch(name.lower(), glob)
            for name in (release.name, release.model, release.repo)
        )
    ]


def line(release: Release, files: Presets) -> Line:
    """Return the listing's line of a release."""
    saes = release.saes.items()
    sites = dict.fromkeys(filter(None, (_site(release, sae_id, sae) for sae_id, sae in saes)))
    l0s = [sae.mean_l0 for sae in release.saes.values() if sae.mean_l0]
    explained = sum(sae.neuronpedia_id is not None for sae in release.saes.values())
    return Line(
        release.name,
        release.model,
        ", ".join(sites),
        _kind(release),
        _layers(release),
        "" if not l0s else f"{min(l0s):g}" + ("" if min(l0s) == max(l0s) else f"-{max(l0s):g}"),
        {0: "", len(saes): "all"}.get(explained, f"{explained} of {len(saes)}"),
        settings(release, files),
    )


def rows(release: Release) -> Iterator[tuple[str, str, str, str]]:
    """Yield layer, id, mean L0 and Neuronpedia's source of each SAE, in order of layers."""

    def place(item: tuple[str, RegisteredSae]) -> tuple[int, int, float]:
        return _layer(item[0]), _size(_width(release, *item)), item[1].mean_l0 or 0.0

    for sae_id, sae in sorted(release.saes.items(), key=place):
        layer = _layer(sae_id)
        l0 = "" if sae.mean_l0 is None else f"{sae.mean_l0:g}"
        yield "" if layer < 0 else str(layer), sae_id, l0, sae.neuronpedia_id or ""


def presets() -> Presets:
    """Return the presets of the package that settings of a release choose."""
    saes = [preset for preset in _group("sae") if preset.fields.get("release", "???") != "???"]
    settings = {
        default["override /sae"]: preset.name
        for preset in _group("setting")
        for default in preset.fields.get("defaults", ())
        if "override /sae" in default
    }
    return Presets(saes, _group("model"), settings)


def _group(name: str) -> list[Preset]:
    paths = sorted((PRESETS / name).glob("*.yaml"))
    return [Preset(path.stem, yaml.safe_load(path.read_text(encoding="utf-8"))) for path in paths]


def settings(release: Release, files: Presets) -> str:
    """Return the settings that load a release and its language model, by presets if they exist."""
    saes = _sae_settings(release, files.saes)
    preset, _, changes = saes.removeprefix("sae=").partition(" ")
    if preset in files.settings:
        return f"setting={files.settings[preset]} {changes}".rstrip()
    model = next((m.name for m in files.models if _is_model(m, release.model)), None)
    return saes if model is None or not saes else f"model={model} {saes}"


def _is_model(preset: Preset, name: str) -> bool:
    return bare(name) in {bare(preset.fields[key]) for key in ("name", "path")}


def _sae_settings(release: Release, saes: Sequence[Preset]) -> str:
    for preset in saes if "transcoder" not in release.name else ():
        for key in ("release", "offers_release"):
            chosen = _by_preset(release, preset, key)
            if chosen is not None:
                return chosen
    templates: dict[str, int] = {}
    for sae_id, sae in release.saes.items():
        if _layer(sae_id) >= 0:
            template = LAYER.sub(r"\1{layer}", sae_id, count=1)
            templates[template] = templates.get(template, 0) + 1 + (sae.neuronpedia_id is not None)
    if not templates:
        return ""
    best = max(templates, key=lambda template: templates[template])
    shift = " sae.shift=1" if "resid_pre" in best else ""
    return f"sae=saelens sae.release={release.name} 'sae.id_template=\"{best}\"'{shift}"


def _by_preset(release: Release, preset: Preset, key: str) -> str | None:
    fields, hooks = preset.fields, preset.fields.get("hooks", {})
    name = re.fullmatch(_pattern(fields.get(key) or ""), release.name)
    if not name:
        return None
    parts = name.groupdict()
    site = next((s for s, hook in hooks.items() if hook == parts.get("hook")), None)
    site = parts.get("site") or site or fields.get("site", "")
    width = parts.get("width")
    sparsity = ""
    ids = fields["id_template"]
    if key == "offers_release":
        ids, sparsity = fields["offers_id"], " sae.l0=70"
    ids = ids.replace("{hook}", hooks.get(site, site)).replace("{site}", site)
    ids = ids.replace("{width}", width or "{width}")
    matches = [match for sae_id in release.saes if (match := re.fullmatch(_pattern(ids), sae_id))]
    if not matches:
        return None
    if width is None and "width" in matches[0].groupdict():
        widths = dict.fromkeys(match["width"] for match in matches)
        width = fields["width"] if fields["width"] in widths else next(iter(widths))
    chosen = {"site": site, "width": width}
    changed = (f" sae.{k}={v}" for k, v in chosen.items() if v and v != fields.get(k))
    return f"sae={preset.name}{''.join(changed)}{sparsity}"


def _pattern(template: str) -> str:
    """Return a regular expression that matches what a template of ``conf/sae`` stands for."""
    return re.sub(r"\\{(\w+)\\}", r"(?P<\1>[\\w.-]+)", re.escape(template))


def _layer(sae_id: str) -> int:
    """Return the layer in an id, -1 without one."""
    match = LAYER.search(sae_id)
    return int(match[2]) if match else -1


def _layers(release: Release) -> str:
    """Return the layers of each width, such as ``16k 65k: 0-25, 1m: 5 12 19``."""
    of_width: dict[str, set[int]] = {}
    for sae_id, sae in release.saes.items():
        if _layer(sae_id) >= 0:
            of_width.setdefault(_width(release, sae_id, sae), set()).add(_layer(sae_id))
    widths: dict[tuple[int, ...], list[str]] = {}
    for width in sorted(of_width, key=_size):
        widths.setdefault(tuple(sorted(of_width[width])), []).append(width)
    return ", ".join(
        f"{' '.join(names)}: {_ranges(layers)}".removeprefix(": ")
        for layers, names in widths.items()
    )


def _ranges(layers: Sequence[int]) -> str:
    """Return ``0-2 5`` for 0, 1, 2, 5."""
    runs = [list(run) for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    return " ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ends)


def _width(release: Release, sae_id: str, sae: RegisteredSae) -> str:
    """Return the width in an SAE's names, empty if they have none."""
    for text in (sae_id, release.name, sae.neuronpedia_id or "", sae.path, release.repo):
        match = WIDTH.search(text)
        if match:
            width = (match[1] or match[2]).lower()
            power = re.fullmatch(r"2pow(\d+)", width)
            return f"{2 ** int(power[1]) // 1000}k" if power else width
    return ""


def _size(width: str) -> int:
    number = re.match(r"\d+", width)
    return int(number[0]) * (1000 if width.endswith("m") else 1) if number else 0


def _site(release: Release, sae_id: str, sae: RegisteredSae) -> str:
    """Return the site that an SAE reads, empty if its names do not contain it."""
    for text in (f"{release.name} {sae_id} {sae.path}", f"{release.repo} {sae.neuronpedia_id}"):
        for site, pattern in SITES.items():
            if re.search(pattern, text, re.IGNORECASE):
                return site
    return ""


def _kind(release: Release) -> str:
    if release.loader in KINDS:
        return KINDS[release.loader]
    path = next(iter(release.saes.values())).path
    text = f"{release.name} {release.repo} {path}"
    kinds = (kind for word, kind in NAMED.items() if re.search(word, text, re.IGNORECASE))
    return next(kinds, "")
