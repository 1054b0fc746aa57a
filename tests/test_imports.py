"""Which file may know which package, and that ``import saematch`` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import saematch

SOURCE = Path(saematch.__file__).parent
HOMES = {
    "sae_lens": {
        "sae/formats/saelens.py",
        "sae/sources/hub.py",
        "training/steps.py",
        "training/trained.py",
    },
    "transformers": {"lm/checkpoint.py", "lm/dense_gguf.py", "zoo/language_model.py"},
    "tokenizers": {"zoo/language_model.py"},
    "wandb": {"run/tracking.py"},
    "hydra": {"app/configuration.py", "app/launching.py", "app/messages.py"},
    "omegaconf": {"app/configuration.py", "app/launching.py", "app/messages.py"},
    "lightning": {"texts/lightning_runner.py", "run/tracking.py"},
    "rich": {"report/terminal.py", "app/saes_listing.py", "compare/terminal.py"},
    "matplotlib": {
        "report/style.py",
        "report/figures.py",
        "report/studies.py",
        "report/judged.py",
        "report/training.py",
        "compare/figures.py",
    },
    "PIL": {"report/reproduction.py"},
    "markdown_it": {"report/reproduction.py"},
    "numba": {"matching/solver/auction.py"},
    "psutil": {"core/files.py", "matching/solver/products.py"},
    "datasets": {"texts/hub.py"},
    "huggingface_hub": {
        "core/downloads.py",
        "lm/checkpoint.py",
        "sae/sources/hub.py",
        "texts/hub.py",
    },
    "yaml": {"sae/sources/registry.py", "app/messages.py", "app/saes.py", "app/sweep/file.py"},
    "sweeps": {"app/sweep/engine.py"},
    "filelock": {"run/run_folders.py", "app/sweep/command.py"},
    "jsonschema": {"app/sweep/engine.py"},
    "openai": {"chat/client.py", "chat/batches.py"},
    "pydantic": {"core/specs.py"},
    "urllib3": {"explain/neuronpedia_web.py"},
    "pyarrow": {"explain/neuronpedia.py", "explain/neuronpedia_web.py", "texts/reading.py"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", HOMES)
def test_each_outside_package_is_known_where_it_may_be(package):
    users = {
        str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if package in imports(path)
    }
    assert users == HOMES[package]


def test_import_saematch_is_light():
    code = (
        "import sys, saematch; "
        "heavy = {'sae_lens', 'transformers', 'wandb', 'openai', 'torch', 'lightning', 'hydra'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv = ['saematch', '--help']\n"
        "from saematch.app.main import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
    assert "+experiment=skip_layers" in done.stdout
    assert "experiment: feature_mse, folding, judge_layers" in done.stdout


def test_the_listing_of_saes_needs_no_torch():
    code = (
        "import sys; sys.argv = ['saematch', 'saes', 'gpt2']\n"
        "from saematch.app.main import main\n"
        "main()\nprint({'torch', 'sae_lens'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
    assert "gpt2-small-res-jb: sae=gpt2_res_jb\n" in done.stdout


def test_the_front_door_leads_to_every_name():
    for name in saematch.__all__:
        assert getattr(saematch, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = saematch.Nothing
