"""Mistakes in the definition of a metric."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("logged='matches'", "logged='matches' must be a tuple of names of tables"),
        ("better='up'", "better='up' must be 'higher', 'lower' or None"),
    ],
)
def test_a_definition_is_checked(setting, problem):
    """In a process without the type checks of tests, as in a user's package."""
    code = f"from saematch.core.columns import Column; Column('m', 'm', {setting})"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"InputError: metric m: {problem}" in process.stderr
