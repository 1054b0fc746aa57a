"""Full disks, size limits and permissions: every file is whole, named in errors, and readable."""

import ast
import errno
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import saematch
from conftest import random_sae
from saematch.core import store
from saematch.core.errors import FileError
from saematch.core.files import replacing, replacing_folder, write_json
from saematch.core.results import Results
from saematch.core.tables import Tables
from saematch.runs.run_folders import LogFile
from saematch.training.trained import save_sae

SOURCE = Path(saematch.__file__).parent
FULL = "No space left on device"
A = Path("outputs/match/a")
SMALL = ["logger=none", "evaluations=[]", "arms=[folded]", "layers=[0,1,2]", "run_id=a"]

# B8

LIMITED = """
import resource, sys
from pathlib import Path
import numpy, pandas, torch
from PIL import Image
from safetensors.torch import save_file
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
from saematch.core.files import replacing, replacing_folder, write_json
from saematch.chat.questions import QuestionRecord, Reply
from saematch.chat.replies import ReplyStore
from saematch.core.match import Match
from saematch.core.tables import Tables
from saematch.report.style import save

folder = Path(sys.argv[1])
noise = numpy.random.default_rng(0).random((300, 300))
table = pandas.DataFrame(noise)
figure, axis = plt.subplots()
axis.plot(noise[:100])
store = ReplyStore(folder / "answers.sqlite")

def text(path):
    with replacing(path) as part:
        part.write_text("x" * 90_000)

def tensors(path):
    with replacing(path) as part:
        save_file({"x": torch.zeros(90_000)}, part)

def parquet(path):
    with replacing(path) as part:
        table.to_parquet(part)

def comma(path):
    with replacing(path) as part:
        table.to_csv(part)

def picture(path):
    with replacing(path) as part:
        Image.fromarray((noise * 255).astype("uint8")).save(part, format="PNG")

def sae(path):
    with replacing_folder(path) as part:
        save_file({"x": torch.zeros(90_000)}, part / "w.safetensors")

def answers(path):
    reply = Reply("x" * 90_000, False, "stop", 1, 1, "m")
    store.keep("m", [(QuestionRecord("k", "p", ("a",), 0), reply)])

writers = {
    "a.json": lambda path: write_json(path, "x" * 90_000),
    "b.txt": text,
    "c.safetensors": tensors,
    "d.parquet": parquet,
    "e.csv": comma,
    "f.png": picture,
    "g.svg": lambda path: save(figure, path.with_suffix(".png")),
    "h": sae,
    "i.safetensors": lambda path: Match.from_columns(torch.arange(20_000), 20_000).save(path),
    "answers.sqlite": answers,
}
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
for name, write in writers.items():
    try:
        write(folder / name)
    except OSError as error:
        print(error)
    else:
        print("written:", name)
"""
"""Every kind of writer under a limit of 50,000 bytes a file."""


def test_B8_every_kind_of_writer_names_the_file_and_the_cause(tmp_path):
    (tmp_path / "a.json").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    names = ["a.json", "b.txt", "c.safetensors", "d.parquet", "e.csv", "f.png", "g", "h",
             "i.safetensors"]  # fmt: skip
    *lines, answers = lines
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"{tmp_path / name}"), line
        assert line.endswith(
            " cannot be written (File too large): raise the limit (ulimit -f) and run the same "
            "command again"
        )
    assert answers.startswith(f"{tmp_path / 'answers.sqlite'} cannot be written (")
    assert (tmp_path / "a.json").read_text() == "old"
    left = {path.name for path in tmp_path.iterdir()} - {"answers.sqlite"}
    assert left <= {"a.json", "g.png"}, "nothing is half-written"


WRITERS = {"write_text", "write_bytes", "save_file", "to_csv", "to_parquet", "savefig",
           "write_table", "save_pretrained"}  # fmt: skip


def unguarded(path: Path) -> list[str]:
    """Return the calls that write a file outside a block of ``replacing``."""
    written_paths = []

    def visit(node: ast.AST, guarded: bool) -> None:
        if isinstance(node, ast.With):
            guarded |= any("replacing" in ast.unparse(item.context_expr) for item in node.items)
        if isinstance(node, ast.Call) and not guarded:
            called = node.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            owner = ast.unparse(called.value) if isinstance(called, ast.Attribute) else ""
            mode = [a.value for a in node.args if isinstance(a, ast.Constant)]
            writes = name in WRITERS or (name == "save" and owner in ("np", "torch", "image"))
            writes |= name == "open" and any(m in ("w", "wb", "a", "ab", "x") for m in mode)
            if writes and "/proc/" not in owner:  # a setting of the system is no file
                written_paths.append(
                    f"{path.relative_to(SOURCE)}:{node.lineno}: {ast.unparse(called)}"
                )
        for child in ast.iter_child_nodes(node):
            visit(child, guarded)

    visit(ast.parse(path.read_text()), False)
    return written_paths


IN_A_NEW_FOLDER = SOURCE / "explorer/blob.py"
"""Its files are in the folder of a page, which ``write_page`` replaces as a whole."""


def test_B8_no_file_is_written_in_another_way():
    paths = sorted(set(SOURCE.rglob("*.py")) - {IN_A_NEW_FOLDER})
    assert [line for path in paths for line in unguarded(path)] == []


def test_B8_a_full_disk_ends_a_run_in_one_line_and_the_run_continues_later(
    cli, tmp_path, monkeypatch
):
    saved = []

    def save(tensors, path, metadata=None):
        saved.append(path)
        if len(saved) > 2:  # the first match, in the cache and in the run's folder
            raise SafetensorError(f"Error while serializing: I/O error: {FULL} (os error 28)")
        save_file(tensors, path, metadata)

    with monkeypatch.context() as patched:
        patched.setattr(store, "save_file", save)
        message, _ = cli(*SMALL)
    assert message.startswith("saematch: outputs/cache/matches/")
    assert message.endswith(
        f".safetensors cannot be written ({FULL}): free some space and run the same command again"
    )
    results = Results.load(tmp_path / A / "results.json")
    assert (results.status, results.error) == ("failed", f"FileError: {message[10:]}")
    assert not list(tmp_path.rglob("*.part"))
    message, output = cli(*SMALL)
    assert message is None
    assert "2 matches: 1 solved, 1 found" in output.err


def test_B8_an_error_that_cannot_be_saved_is_printed(cli, tmp_path, monkeypatch):
    def full(self, path):
        raise FileError(f"{path} cannot be written ({FULL})")

    monkeypatch.setattr(Results, "save", full)
    message, output = cli(*SMALL)
    assert message == f"saematch: {A}/results.json cannot be written ({FULL})"
    assert "Traceback" not in output.err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, FULL, "another/file"),
        URLError("no answer"),
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        SafetensorError("Error while deserializing header"),
        KeyError("x"),
    ],
)
def test_B8_errors_of_other_things_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, replacing(tmp_path / "a"):
        raise error
    assert caught.value is error
    assert not list(tmp_path.iterdir())


def test_B8_a_folder_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(OSError, match="a cannot be written"), replacing_folder(path) as part:
        (part / "one").write_text("1")
        raise OSError(errno.EDQUOT, "quota")
    assert not list(tmp_path.iterdir())
    for text in ("old", "new"):
        with replacing_folder(tmp_path / "a") as part:
            (part / text).write_text(text)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_B8_a_log_that_cannot_be_written_gives_one_warning(capsys):
    log, logger = LogFile("/dev/full"), logging.Logger("x")
    logger.addHandler(log)
    for text in ("one", "two"):
        logger.info(text)
    log.close()
    printed = capsys.readouterr().err
    assert printed == f"/dev/full cannot be written ({FULL}): the log ends here\n"


def test_B8_a_mirror_that_cannot_be_written_leaves_the_run_finished(tmp_path, monkeypatch, caplog):
    import wandb

    from saematch.runs.tracking import Outcome, WandbLogging

    def full(*_, **__):
        raise OSError(errno.ENOSPC, FULL, "media/table.json")

    monkeypatch.setattr(wandb, "Table", full)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    results = Results("x", {}, {}, tables=Tables.of({"layers": [{"layer": 1}]}))
    tracker = WandbLogging(offline=True).start("x", tmp_path, {})
    tracker.finish(Outcome(results, {}, tmp_path / "matches"))
    assert f"did not accept everything: [Errno 28] {FULL}: 'media/table.json'" in caplog.text
    assert wandb.run is None, "the next run of the process has a mirror of its own"


TINY_DISK = """
mount -t tmpfs -o size=$1 none "$2" && cd "$2" && shift 2 && "$@"
status=$?
cp -r outputs "$OUT"
exit $status
"""


def can_mount() -> bool:
    """Return whether this machine lets one process mount a file system."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    probe = [unshare, "-rm", "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")
@pytest.mark.parametrize("size", ["8k", "40k", "150k", "400k"])
def test_B8_disks_of_every_size_end_in_one_line(tiny, tmp_path, size):
    from commands import command

    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", TINY_DISK, "sh", size, str(tmp_path / "disk"),
         *command(tiny, "run_id=a", "sae_memory=1.0")],
        env={**os.environ, "OUT": str(tmp_path / "left")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("saematch: outputs/")
    assert f" cannot be written ({FULL}): free some space" in last
    for path in (tmp_path / "left").rglob("*"):
        assert not path.name.endswith(".part")
        if path.suffix == ".safetensors":
            load_file(path)
        if path.suffix == ".json":
            json.loads(path.read_text())


# C9


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_C9_files_follow_the_umask(tmp_path, umask):
    with replacing(tmp_path / "a.safetensors") as part:
        save_file({"x": torch.zeros(3)}, part)
    write_json(tmp_path / "b.json", 1)
    with replacing_folder(tmp_path / "c") as part:
        save_file({"x": torch.zeros(3)}, part / "c.safetensors")
    save_sae(random_sae(0), tmp_path / "layer_0", {})
    assert set(modes(tmp_path).values()) == {0o666 & ~umask}
    assert len(modes(tmp_path)) == 5


def test_C9_colleagues_can_read_every_file_of_a_run(cli, tmp_path):
    before = os.umask(0o022)
    try:
        settings = ["run_id=a", "logger=csv", "arms=[folded]", "layers=[0,1]", "figures=null"]
        assert cli(*settings)[0] is None
    finally:
        os.umask(before)
    of_run = modes(tmp_path)
    assert {Path(name).suffix for name in of_run} >= {".safetensors", ".json", ".png", ".csv"}
    assert set(of_run.values()) == {0o644}
