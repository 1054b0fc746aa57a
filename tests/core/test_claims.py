"""Units of work that several processes share."""

import multiprocessing

import pytest
from filelock import FileLock

from saematch.core import store
from saematch.core.claims import claim, do_together, is_sharing, lock_of, sharing

SPAWN = multiprocessing.get_context("spawn")


def test_without_sharing_there_are_no_locks(tmp_path):
    assert not is_sharing()
    assert lock_of(tmp_path / "a") is None
    with claim(None) as ours:
        assert ours
    assert not list(tmp_path.iterdir())


@pytest.fixture
def shared(tmp_path):
    with sharing(tmp_path / "locks"):
        yield tmp_path


def units(folder, log):
    """Units that write one note each, and the name of each to a log."""

    def unit(name):
        def work():
            log.append(name)
            store.write_note(folder / f"{name}.json", {"name": name})

        return work

    return {folder / f"{name}.json": unit(name) for name in "abc"}


def test_a_unit_that_another_process_has_comes_last(shared):
    log = []
    other = FileLock(lock_of(shared / "a.json"))
    other.acquire()
    work = units(shared, log)
    last = work[shared / "b.json"]
    work[shared / "b.json"] = lambda: (last(), other.release())  # the other process was killed
    do_together(work)
    assert log == ["b", "c", "a"]


def test_a_unit_that_another_process_finishes_is_not_done_again(shared):
    log = []
    others = units(shared, [])
    other = FileLock(lock_of(shared / "a.json"))
    other.acquire()
    work = units(shared, log)
    last = work[shared / "c.json"]

    def finish():
        last()
        others[shared / "a.json"]()
        other.release()

    do_together({**work, shared / "c.json": finish})
    assert log == ["b", "c"]
    do_together(work)
    assert log == ["b", "c"]


def test_units_of_equal_names_in_two_folders_have_two_locks(shared):
    assert lock_of(shared / "x/a.json") != lock_of(shared / "y/a.json")


def _hold(lock, ready):
    with claim(lock) as ours:
        assert ours
        ready.set()
        SPAWN.Event().wait()


def test_the_system_releases_the_lock_of_a_killed_process(shared):
    lock, ready = lock_of(shared / "a.json"), SPAWN.Event()
    holder = SPAWN.Process(target=_hold, args=(lock, ready))
    holder.start()
    assert ready.wait(60)
    with claim(lock) as ours:
        assert not ours
    holder.kill()
    with claim(lock, wait=True) as ours:
        assert ours
    holder.join()
