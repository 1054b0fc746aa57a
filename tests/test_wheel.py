"""An installed wheel runs in an empty folder like the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = [
    "-m",
    "saematch",
    "evaluations=[]",
    "layers=[0,1]",
    "arms=[folded]",
    "logger=none",
    "run_id=a",
]


def results(folder, **environment):
    subprocess.run(
        [sys.executable, *RUN], cwd=folder, env={**os.environ, **environment}, check=True
    )
    return json.loads((folder / "outputs/match/a/results.json").read_text())


@pytest.mark.slow
def test_wheel(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels, target = tmp_path / "wheels", tmp_path / "installed"
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = wheels.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "saematch/conf/config.yaml" in names
    assert "saematch/sweeps/sparsity.yaml" in names
    assert "saematch/zoo/lm/model.safetensors" in names
    assert "saematch/py.typed" in names
    assert "saematch/report/templates/style.css" in names
    web = ROOT / "src/saematch/explorer/web"
    pages = {f"saematch/explorer/web/{p.relative_to(web)}" for p in web.rglob("*") if p.is_file()}
    assert pages <= set(names)
    assert not [n for n in names if n.startswith(("tests", "outputs"))]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    for name in ("empty", "checkout"):
        (tmp_path / name).mkdir()
    installed = results(tmp_path / "empty", PYTHONPATH=str(target))
    checkout = results(tmp_path / "checkout")
    assert installed["provenance"]["git_commit"] is None, "the wheel ran, not the checkout"
    assert installed["tables"] == checkout["tables"]
    assert installed["config"] == checkout["config"]
