"""Files are complete or absent, also if several processes write at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch

from conftest import random_sae
from saematch.core.files import replacing
from saematch.core.pairs import SaeKey
from saematch.matching.arm import Arm
from saematch.matching.matchers import Optimal
from saematch.matching.objectives.parts import Parts
from saematch.matching.store import MatchStore
from saematch.sae.suites import SaeShelf

N = 8


def at_once(do):
    """Call ``do(number)`` in ``N`` threads."""
    with ThreadPoolExecutor(N) as pool:
        return list(pool.map(do, range(N)))


def test_each_call_has_a_temporary_file_of_its_own(tmp_path):
    path, both = tmp_path / "deep" / "a.txt", Barrier(N)

    def write(number):
        with replacing(path) as part:
            part.write_text(str(number) * 1000)
            both.wait()  # every temporary file is written before the first one gets its name

    at_once(write)
    assert path.read_text() in {str(number) * 1000 for number in range(N)}
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), replacing(path) as part:
        part.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_another_run_has_written_meanwhile_stays(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path, Path.exists) as mine:
        mine.write_text("mine")
        with replacing(path, Path.exists) as theirs:
            theirs.write_text("theirs")
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_runs_that_solve_the_same_match_at_once(tmp_path):
    keys = [SaeKey("default", layer) for layer in (0, 1)]
    saes = SaeShelf.of({key: random_sae(key.layer, layer=key.layer) for key in keys})
    arm, both = Arm("threshold", Parts(), Optimal()), Barrier(N)

    def solve(_):
        store = MatchStore(tmp_path)
        both.wait()
        return store.match(saes, *keys, arm)

    matches = at_once(solve)
    assert all(torch.equal(match.columns, matches[0].columns) for match in matches)
    assert len(list(tmp_path.iterdir())) == 1
    again = MatchStore(tmp_path)
    assert torch.equal(again.match(saes, *keys, arm).columns, matches[0].columns)
    assert dict(again.counts) == {"read": 1}
