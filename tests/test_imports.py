"""``import saematch`` is light and exports every public name."""

import subprocess
import sys

import pytest

import saematch


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
