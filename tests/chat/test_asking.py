"""No question is lost or paid for twice, and every mistake ends in one line."""

import logging
import multiprocessing
import os
import re
import signal
import sqlite3
import time
from collections import Counter

import pytest

from chat.judge_server import KEY, JudgeServer
from saematch.chat import asking, client
from saematch.chat.asking import AskingError
from saematch.chat.model import ChatModel, Limits, NoJudge
from saematch.chat.questions import Question
from saematch.judge.connect import connect
from saematch.judge.prompts import JUDGE
from saematch.judge.verdicts import read_verdict

MIX = {
    "429": 0.03, "429 without retry-after": 0.005, "500": 0.03, "503": 0.03, "slow": 0.02,
    "cut": 0.01, "broken body": 0.02, "html": 0.02, "malformed JSON": 0.03, "empty choice": 0.02,
    "empty content": 0.02, "refusal": 0.03, "filter": 0.01, "label outside": 0.03, "text": 0.03,
    "cut off": 0.02, "null body": 0.005, "list body": 0.005, "null choice": 0.005,
    "no message": 0.005, "word choice": 0.005, "error body": 0.01, "free empty choice": 0.005,
    "list content": 0.01, "too long": 0.01,
}  # fmt: skip
UNPARSED = ("malformed JSON", "empty choice", "empty content", "label outside", "cut off",
            "too long")  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(asking, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(asking, "LOST_IN_A_ROW", 4)


@pytest.fixture
def served(request):
    servers = []

    def start(**options):
        servers.append(JudgeServer(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def questions(n, start=0):
    return [Question(JUDGE, (f"pear {i}", f"pear apple {i % 5}")) for i in range(start, start + n)]


def spec(server, **options):
    limits = {"concurrency": 16, "timeout": 10.0} | options.pop("limits", {})
    return ChatModel(**{"model": "judge-1", "base_url": server.url} | options,
                     limits=Limits(**limits))  # fmt: skip


@pytest.mark.parametrize("n", [500, pytest.param(2000, marks=pytest.mark.slow)])
def test_under_every_fault_no_request_is_lost_or_paid_twice(served, tmp_path, n):
    server = served(faults=MIX)
    chat = connect(spec(server), tmp_path / "store.sqlite")
    batch = questions(n)
    replies = chat.ask(batch, "judgements")
    assert set(replies) == set(batch)
    delivered = Counter(server.delivered.values())
    filtered = server.faulted["filter"] + server.faulted["too long"]
    assert delivered == {1: n - filtered}, "every answer was delivered once"
    labels = Counter(read_verdict(reply).label for reply in replies.values())
    assert labels["UNPARSED"] == sum(server.faulted[name] for name in UNPARSED)
    assert labels["REFUSED"] == server.faulted["refusal"] + server.faulted["filter"]
    assert labels.total() == n
    assert labels["MAYBE"] == n - labels["UNPARSED"] - labels["REFUSED"]
    assert chat.spent.requests == n
    answered = n - filtered
    assert 700 * answered <= chat.spent.tokens_in <= 700 * n
    assert all(server.faulted[name] for name in MIX), "every fault was met"
    requests = len(server.bodies)
    assert chat.ask(batch, "judgements") == replies
    assert len(server.bodies) == requests, "stored answers are not asked for again"


def test_no_more_requests_in_flight_than_allowed(served, tmp_path):
    server = served(faults={"slow": 1.0})
    connect(spec(server, limits={"concurrency": 3}), tmp_path / "s").ask(questions(12), "x")
    assert server.most_in_flight == 3


def test_the_request_is_what_the_protocol_asks_for(served, tmp_path):
    server = served(key=KEY)
    os.environ["SAEMATCH_TEST_KEY"] = KEY
    try:
        chat = connect(spec(server, key_variable="SAEMATCH_TEST_KEY"), tmp_path / "s")
        chat.ask(questions(1), "x")
    finally:
        del os.environ["SAEMATCH_TEST_KEY"]
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-1", 0, 200)
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["properties"]["label"]["enum"] == [1, 2, 3]
    assert chat.provenance()["served_by"] == {"judge-1-0613": 1}
    assert KEY.encode() not in (tmp_path / "s").read_bytes()


def test_a_server_without_schemas_is_asked_without(served, tmp_path, caplog):
    server = served(faults={"no schema": 1.0})
    chat = connect(spec(server, limits={"concurrency": 1}), tmp_path / "s")
    assert len(chat.ask(questions(5), "x")) == 5
    assert sum("response_format" in body for body in server.bodies) == 1
    assert "does not support response_format" in caplog.text
    server = served()
    connect(spec(server, structured=False), tmp_path / "t").ask(questions(2), "x")
    assert not any("response_format" in body for body in server.bodies)


def run_until_killed(url, path):
    model = ChatModel("judge-1", url, limits=Limits(concurrency=2))
    connect(model, path).ask(questions(400), "x")


@pytest.mark.slow
def test_a_killed_run_loses_only_requests_in_flight(served, tmp_path):
    server = served()
    child = multiprocessing.get_context("spawn").Process(
        target=run_until_killed, args=(server.url, tmp_path / "s")
    )
    child.start()
    while len(server.delivered) < 60 and child.is_alive():
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    before = Counter(server.delivered)
    assert 60 <= len(before) < 400
    connect(spec(server), tmp_path / "s").ask(questions(400), "x")
    again = [text for text, n in server.delivered.items() if n > 1]
    assert len(again) <= 2, "two requests were running"
    assert len(server.delivered) == 400


def share(url, path, start):
    model = ChatModel("judge-1", url, limits=Limits(concurrency=4))
    assert len(connect(model, path).ask(questions(150, start), "x")) == 150


@pytest.mark.slow
def test_two_runs_at_the_same_time_share_without_paying_twice(served, tmp_path):
    server = served()
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=share, args=(server.url, tmp_path / "s", n)) for n in (0, 50)]
    for child in both:
        child.start()
    for child in both:
        child.join()
    assert [child.exitcode for child in both] == [0, 0]
    assert len(server.delivered) == 200
    assert max(server.delivered.values()) == 1


def test_a_cap_on_requests_stops_a_run_that_continues_later(served, tmp_path):
    server = served()
    capped = spec(server, limits={"max_requests": 7})
    for done in (7, 14):
        with pytest.raises(AskingError, match=rf"max_requests=7 is used up .* {min(7, 20)} of"):
            connect(capped, tmp_path / "s").ask(questions(20), "x")
        assert len(server.bodies) == done
    assert len(connect(capped, tmp_path / "s").ask(questions(20), "x")) == 20
    assert len(server.bodies) == 20


def test_money_is_never_spent_beyond_its_cap(served, tmp_path, caplog):
    """An answer costs 740 tokens here and at most 774, so $0.74 and at most about $0.78."""
    caplog.set_level(logging.INFO)
    server = served()
    prices = {"price_input": 1000.0, "price_output": 1000.0}
    chat = connect(spec(server, **prices, limits={"max_cost": 5.0}), tmp_path / "s")
    with pytest.raises(AskingError, match=r"max_cost=5.0 is used up \(\$4.4400 spent\); 6 of 20"):
        chat.ask(questions(20), "judgements")
    assert chat.spent.cost == pytest.approx(6 * 0.74)
    assert len(server.bodies) == 6
    assert "20 in total, 0 stored, 20 to ask" in caplog.text
    assert re.search(r"at most \$1\d\.\d\d", caplog.text)
    assert "this may stop at judge.limits.max_cost" in caplog.text


@pytest.mark.parametrize("fault", ["500", "429", "html"])
def test_a_server_that_stays_broken_ends_the_round_with_the_count(served, tmp_path, fault):
    server = served(faults={fault: 1.0})
    chat = connect(spec(server, limits={"retries": 1, "concurrency": 2}), tmp_path / "s")
    with pytest.raises(AskingError, match=r"requests to .* after 1 retries .* 0 of 60 answers"):
        chat.ask(questions(60), "x")
    assert len(server.bodies) < 20, "the other questions are not asked"
    server.faults = {}
    assert len(chat.ask(questions(60), "x")) == 60


def test_a_quota_that_is_used_up_ends_at_once(served, tmp_path):
    server = served(faults={"quota": 1.0})
    chat = connect(spec(server, limits={"retries": 1, "concurrency": 2}), tmp_path / "s")
    with pytest.raises(AskingError, match="exceeded your current quota"):
        chat.ask(questions(200), "x")
    assert len(server.bodies) <= 8


def test_one_line_for_each_thing_that_is_wrong(served, tmp_path, monkeypatch):
    store = tmp_path / "s"
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    server = served(key=KEY)
    with pytest.raises(AskingError, match="variable NO_SUCH_KEY is not set"):
        connect(spec(server, key_variable="NO_SUCH_KEY"), store)
    monkeypatch.setenv("WRONG_KEY", "sk-wrong-but-secret")
    with pytest.raises(AskingError, match=r"refuses the key .* variable WRONG_KEY") as refused:
        connect(spec(server, key_variable="WRONG_KEY"), store)
    assert "sk-wrong" not in str(refused.value)
    with pytest.raises(AskingError, match=r"cannot reach the judge at http://127\.0\.0\.1:9/v1"):
        connect(ChatModel("m", "http://127.0.0.1:9/v1"), store)
    with pytest.raises(AskingError, match=r"has no model 'judge-7', but judge-1: set judge\.model"):
        connect(spec(served(), model="judge-7"), store)
    chat = connect(spec(served(models=()), model="judge-7"), store)
    with pytest.raises(AskingError, match="has no model 'judge-7'"):
        chat.ask(questions(3), "x")
    with pytest.raises(AskingError, match=r"lists 2 models \(a, b\): set judge.model"):
        connect(spec(served(models=("a", "b")), model=None), store)
    assert connect(spec(served(models=("only",)), model=None), store).model == "only"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "127.0.0.1:8000"}, "must begin with http"),
        ({"base_url": "https://me:secret@host/v1"}, "base_url contains a password"),
        ({"base_url": "me:secret@host"}, "base_url contains a password"),
        ({"base_url": "https://host/v1?api_key=secret"}, "base_url contains a password or a query"),
        ({"cached_only": True, "model": None}, "needs judge.model"),
    ],
)
def test_specs_refuse_what_cannot_work(options, message):
    with pytest.raises(ValueError, match=message) as refused:
        ChatModel(**{"model": "m", "base_url": "http://x/v1"} | options)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("limit", [{"max_cost": 0.0}, {"max_requests": 0}, {"concurrency": 0}])
def test_a_budget_of_zero_is_refused(limit):
    with pytest.raises(ValueError, match=r"judge\.limits"):
        Limits(**limit)


def test_with_cached_only_nobody_is_asked(served, tmp_path):
    server = served()
    connect(spec(server), tmp_path / "s").ask(questions(5), "x")
    server.close()
    chat = connect(spec(server, cached_only=True, key_variable="NO_SUCH_KEY"), tmp_path / "s")
    assert len(chat.ask(questions(8), "x")) == 5
    assert connect(NoJudge(), tmp_path / "s") is None


def test_a_store_that_is_none_is_refused(tmp_path):
    (tmp_path / "s").write_text("this is no database, " * 100)
    with pytest.raises(ValueError, match="is not a store of answers"):
        connect(ChatModel("m", "http://x/v1", cached_only=True), tmp_path / "s")


def test_the_log_has_no_line_for_each_request(served, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    connect(spec(served()), tmp_path / "s").ask(questions(3), "judgements")
    assert caplog.text.count("HTTP Request") == 0


def test_every_answer_is_in_the_file_with_what_it_answers(served, tmp_path):
    connect(spec(served()), tmp_path / "s").ask(questions(2), "x")
    with sqlite3.connect(tmp_path / "s") as database:
        rows = database.execute("select model, prompt, texts, tokens_in from replies").fetchall()
        assert database.execute("select count(*) from claims").fetchone() == (0,)
    database.close()
    assert {row[:2] for row in rows} == {("judge-1", JUDGE.version)}
    assert '["pear 0", "pear apple 0"]' in {row[2] for row in rows}


@pytest.mark.parametrize("key", [f"{KEY}\n{KEY}2", f"{KEY} {KEY}", f"“{KEY}”"])
def test_a_key_that_cannot_be_one_is_refused_without_being_shown(tmp_path, monkeypatch, key):
    monkeypatch.setenv("A_KEY", key)
    with pytest.raises(AskingError, match="A_KEY contains a space") as refused:
        connect(ChatModel("m", "http://127.0.0.1:9/v1", key_variable="A_KEY"), tmp_path / "s")
    assert KEY not in str(refused.value)
    with pytest.raises(ValueError, match="must be the name of an environment variable") as refused:
        ChatModel("m", "http://127.0.0.1:9/v1", key_variable=KEY)
    assert KEY not in str(refused.value)


def test_an_echoed_key_is_never_shown(served, tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", KEY)
    chat = connect(
        spec(served(faults={"echo": 1.0}, key=KEY), key_variable="A_KEY"), tmp_path / "s"
    )
    with pytest.raises(AskingError, match="refuses the request") as refused:
        chat.ask(questions(1), "x")
    assert KEY[:6] not in str(refused.value)


def test_options_that_a_model_does_not_take_are_left_out(served, tmp_path):
    server = served(faults={"no max_tokens": 1.0})
    chat = connect(spec(server, limits={"retries": 0, "concurrency": 1}), tmp_path / "s")
    assert len(chat.ask(questions(3), "x")) == 3
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 200, 200, 200]


def test_a_server_that_counts_no_tokens_costs_what_was_estimated(served, tmp_path):
    server = served(faults={"no usage": 1.0})
    chat = connect(spec(server, price_input=1.0), tmp_path / "s")
    chat.ask(questions(4), "x")
    assert chat.spent.tokens_in == sum(question.tokens()[0] for question in questions(4))
    assert chat.spent.cost > 0


def test_a_question_that_is_used_twice_counts_once(served, tmp_path):
    server = served()
    chat = connect(spec(server), tmp_path / "s")
    for _ in range(3):
        chat.ask(questions(4), "x")
    assert (chat.spent.requests, chat.spent.reused) == (4, 0)
    assert chat.provenance()["served_by"] == {"judge-1-0613": 4}
    later = connect(spec(server), tmp_path / "s")
    later.ask(questions(6), "x")
    assert (later.spent.requests, later.spent.reused) == (2, 4)


def test_no_questions_cost_nothing(tmp_path):
    chat = connect(ChatModel("m", "http://x/v1", cached_only=True), tmp_path / "s")
    assert chat.estimate([]) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ("429", "429 (Too Many Requests)"),
        ("503", "503 (Service Unavailable)"),
        ("html", "with an HTML page or other text that is no answer"),
    ],
)
def test_the_log_has_one_line_on_answers_after_which_requests_are_sent_again(
    served, tmp_path, caplog, fault, answer
):
    server = served(faults={fault: 0.3})
    connect(spec(server), tmp_path / "s").ask(questions(20), "x")
    assert server.faulted[fault] > 1
    line = f"{server.url} answers {answer}: asking again, up to 8 times a request"
    assert caplog.messages.count(line) == 1


def test_the_bar_shows_how_long_no_answer_has_come(served, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "SIGN_SECONDS", 0.05)
    notes = []
    monkeypatch.setattr(asking.Bar, "remark", lambda _, text: notes.append(text))
    connect(spec(served(faults={"slow": 1.0})), tmp_path / "s").ask(questions(1), "x")
    assert "no answer for 0 s" in notes
