import io
import logging
import pickle
from types import SimpleNamespace

import pytest

from saematch.core import progress as module
from saematch.core.progress import Console, counted, duration, progress, progress_inside


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(module, "REFRESH", 0.0)
    stderr = Terminal()  # pytest puts its own at the place of sys.stderr
    monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stderr))
    return stderr


@pytest.fixture
def clock(monkeypatch):
    """Seconds that ``time.time`` returns."""
    seconds = [100.0]
    monkeypatch.setattr(module.time, "time", lambda: seconds[0])
    return seconds


def messages(caplog):
    return [record.message for record in caplog.records if record.name == module.__name__]


def test_a_terminal_shows_one_bar_for_a_stage_and_the_work_inside(terminal):
    with progress("match", 2, "match") as bar:
        with progress_inside("auction", None) as inside:
            inside.total = 12
            inside.advance(3)
        bar.advance()
        bar.remark("$0.10")
    drawn = terminal.getvalue().split("\r")
    assert any("match:   0%|" in text and ", auction 3/12]" in text for text in drawn)
    assert any("match:  50%|" in text and "| 1/2 [" in text for text in drawn)
    assert any(", $0.10]" in text for text in drawn)
    assert "\n" not in terminal.getvalue(), "there is one line"
    assert not drawn[-1].strip(), "the bar is removed at the end"


def test_without_a_terminal_a_stage_is_one_line_with_its_time(capsys, caplog, clock):
    caplog.set_level(logging.INFO)
    with progress("read texts", 5, "batch") as bar:
        bar.skip(2)
        with progress("inside", 1, "file") as inside:
            clock[0] += 42
            inside.advance()
        bar.advance(3)
    assert messages(caplog) == ["read texts: 3 batches in 42 s (2 stored before)"]
    assert capsys.readouterr().err == ""


def test_a_short_stage_is_not_logged(caplog, clock):
    caplog.set_level(logging.INFO)
    with progress("load SAEs", 1, "SAE") as bar:
        clock[0] += 0.5
        bar.advance()
    assert messages(caplog) == []


def test_a_stage_of_hours_logs_at_least_every_ten_minutes(caplog, clock):
    caplog.set_level(logging.INFO)
    with progress("read texts", 400, "batch") as bar:
        for _ in range(400):
            clock[0] += 60
            bar.advance()
    done = [int(text.split()[2]) for text in messages(caplog)[:-1]]
    assert done == [1, 2, 4, 8, *range(16, 400, 10)]


def test_a_stage_of_minutes_logs_how_much_time_is_left(caplog, clock):
    caplog.set_level(logging.INFO)
    with progress("read texts", 10, "batch") as bar:
        for _ in range(10):
            clock[0] += 40
            bar.advance()
    assert messages(caplog) == [
        "read texts: 2 of 10 batches after 1 min 20 s, about 5 min 20 s left",
        "read texts: 4 of 10 batches after 2 min 40 s, about 4 min 0 s left",
        "read texts: 8 of 10 batches after 5 min 20 s, about 1 min 20 s left",
        "read texts: 10 batches in 6 min 40 s",
    ]


def test_a_stage_that_fails_is_not_logged_and_leaves_no_bar(caplog, clock):
    caplog.set_level(logging.INFO)
    with pytest.raises(KeyError), progress("match", 1, "match"), progress_inside("auction", 3):
        clock[0] += 5
        raise KeyError
    assert module.open_bars == [] and messages(caplog) == []


def test_work_that_is_left_open_inside_a_stage_ends_with_it():
    def blocks():
        with progress_inside("lists", 2) as bar:
            yield bar

    reader = blocks()
    with progress("match", 1, "match"):
        next(reader)
    assert module.open_bars == []
    reader.close()
    assert module.open_bars == []


def test_work_without_a_stage_shows_nothing(terminal, caplog):
    caplog.set_level(logging.INFO)
    with progress_inside("auction", 3) as bar:
        bar.advance(3)
    assert terminal.getvalue() == "" and messages(caplog) == []


def test_another_process_continues_a_bar(terminal):
    with progress("read texts", 4, "batch") as bar:
        bar.advance()
        copied = pickle.dumps(bar)
    terminal.truncate(0)
    pickle.loads(copied).advance(2)
    assert "read texts:  75%|" in terminal.getvalue()


def test_the_console_prints_above_the_bar_and_leaves_out_texts_for_the_file(terminal):
    logger = logging.getLogger("saematch.test_console")
    console = Console(terminal)
    logger.addHandler(console)
    try:
        with progress("match", 2, "match") as bar:
            bar.advance()
            terminal.truncate(0)
            logger.warning("the table", extra=module.ONLY_IN_FILE)
            logger.warning("a message")
            printed = terminal.getvalue()
    finally:
        logger.removeHandler(console)
    assert "the table" not in printed
    before, _, after = printed.partition("a message\n")
    assert not before.strip("\r\0 ") and "match:  50%|" in after


def test_lines_of_jobs_in_several_processes_have_their_number(terminal, monkeypatch):
    monkeypatch.setattr(module, "current_process", lambda: SimpleNamespace(name="LokyProcess-1"))
    with progress("match", 2, "match") as bar:
        bar.advance()
    assert terminal.getvalue() == "", "bars of several processes would overwrite each other"
    console = Console(terminal, job=2)
    for text in ("\n[3/4] folder", "match: 2 matches"):
        console.emit(logging.makeLogRecord({"msg": text}))
    assert terminal.getvalue() == "\n[3/4] folder\n[3] match: 2 matches\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (67, "1 min 7 s"), (7_500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_counted_nouns():
    texts = [counted(1, "batch"), counted(1200, "batch"), counted(2, "SAE"), counted(0, "match")]
    assert texts == ["1 batch", "1,200 batches", "2 SAEs", "0 matches"]


def test_a_notebook_shows_a_bar(monkeypatch):
    class OutStream(io.StringIO):
        __module__ = "ipykernel.iostream"

    stream = OutStream()
    monkeypatch.setattr("sys.stderr", stream)
    with progress("match", 3, "match") as bar:
        bar.advance()
    assert "match:" in stream.getvalue()
