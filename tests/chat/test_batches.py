"""The Batch API: questions are submitted once, fetched by a later start, and failures counted."""

import pytest

from chat.judge_server import JudgeServer
from saematch.chat import asking, batches
from saematch.chat.asking import AskingError
from saematch.chat.model import ChatModel, Limits
from saematch.chat.questions import Question
from saematch.chat.replies import ReplyStore
from saematch.judge.connect import connect
from saematch.judge.prompts import JUDGE
from saematch.judge.verdicts import read_verdict


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(batches, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(asking, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(batches, "BATCH_SIZE", 8)


@pytest.fixture
def server():
    server = JudgeServer()
    yield server
    server.close()


def questions(n):
    return [Question(JUDGE, (f"pear {i}", "pear" if i % 2 else "plum")) for i in range(n)]


def chat(server, path, **limits):
    model = ChatModel("judge-1", server.url, price_input=1.0, price_output=1.0, batch=True,
                      limits=Limits(**limits))  # fmt: skip
    return connect(model, path / "s")


def test_a_batch_is_handed_in_fetched_and_half_as_dear(server, tmp_path):
    judge = chat(server, tmp_path)
    replies = judge.ask(questions(20), "x")
    labels = [read_verdict(replies[question]).label for question in questions(20)]
    assert labels == ["DIFFERENT", "MAYBE"] * 10, "joined by name, not by order"
    assert len(server.batches) == 3, "in parts of eight"
    assert not server.bodies
    assert judge.spent.cost == pytest.approx(20 * 740 / 1e6 / 2)
    assert ReplyStore(tmp_path / "s").batches("judge-1") == []
    assert all(batch["completion_window"] == "24h" for batch in server.batches.values())


def killed_while_waiting(judge, server, n):
    """Hand in questions with a run that is killed before it has fetched an answer."""

    def killed(_):
        raise KeyboardInterrupt

    server.slow_polls = 10**6
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(batches.time, "sleep", killed)
        judge.ask(questions(n), "x")
    server.slow_polls = 1


def test_a_killed_run_comes_back_for_its_batches(server, tmp_path):
    killed_while_waiting(chat(server, tmp_path), server, 12)
    assert len(server.batches) == 2
    replies = chat(server, tmp_path).ask(questions(12), "x")
    assert len(replies) == 12
    assert len(server.batches) == 2
    assert max(server.delivered.values()) == 1


def test_a_run_without_batches_waits_for_those_of_an_earlier_one(server, tmp_path):
    killed_while_waiting(chat(server, tmp_path), server, 5)
    plain = connect(ChatModel("judge-1", server.url), tmp_path / "s")
    assert len(plain.ask(questions(9), "x")) == 9
    assert len(server.batches) == 1
    assert len(server.bodies) == 4, "questions that were not submitted are asked at once"
    assert max(server.delivered.values()) == 1


def test_a_batch_is_found_whose_id_was_not_kept(server, tmp_path):
    judge = chat(server, tmp_path)
    killed_while_waiting(judge, server, 5)
    (noted,) = judge.store.batches("judge-1")
    judge.store.note_batch("judge-1", noted._replace(id=""))
    assert len(chat(server, tmp_path).ask(questions(5), "x")) == 5
    assert len(server.batches) == 1
    never = noted._replace(name="never submitted", id="")
    judge.store.note_batch("judge-1", never)
    more = [*questions(5), Question(JUDGE, ("quince", "pear"))]
    assert len(chat(server, tmp_path).ask(more, "x")) == 6
    assert len(server.batches) == 2


def test_rows_that_failed_are_counted_and_handed_in_again(server, tmp_path):
    server.faults = {"failed row": 0.5}
    with pytest.raises(AskingError, match=r"\d questions of a batch were not answered .*broken"):
        chat(server, tmp_path).ask(questions(8), "x")
    server.faults = {}
    assert len(chat(server, tmp_path).ask(questions(8), "x")) == 8
    assert max(server.delivered.values()) == 1, "answers that arrived are stored"


def test_a_filtered_row_is_refused_once_and_for_all(server, tmp_path):
    server.faults = {"filtered row": 0.5}
    replies = chat(server, tmp_path).ask(questions(8), "x")
    labels = [read_verdict(reply).label for reply in replies.values()]
    assert labels.count("REFUSED") == server.faulted["filtered row"] > 0


def test_a_batch_that_another_run_is_handing_in_is_waited_for(server, tmp_path):
    judge = chat(server, tmp_path)
    other = batches.Batch("x", tuple(q.record("judge-1") for q in questions(3)), "", "elsewhere:1")
    judge.store.note_batch("judge-1", other)
    killed_while_waiting(judge, server, 5)
    first, second = judge.store.batches("judge-1")
    assert first == other, "it is not this run's to drop"
    assert [question.key for question in second.questions] == [
        question.key("judge-1") for question in questions(5)[3:]
    ]


def test_a_server_without_batches(server, tmp_path):
    server.files = None
    judge = chat(server, tmp_path)
    with pytest.raises(AskingError, match=r"has no Batch API: set judge\.batch=false"):
        judge.ask(questions(3), "x")
    assert judge.store.claim([question.key("judge-1") for question in questions(3)])


def test_a_failed_batch_has_a_reason(server, tmp_path):
    judge = chat(server, tmp_path)
    killed_while_waiting(judge, server, 3)
    (batch,) = server.batches.values()
    error = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
    batch |= {"status": "failed", "errors": {"object": "list", "data": [error]}}
    with pytest.raises(AskingError, match=r"3 questions .* failed Enqueued token limit reached"):
        chat(server, tmp_path).ask(questions(3), "x")


def test_a_batch_beyond_a_cap_is_not_handed_in(server, tmp_path):
    for limits in ({"max_cost": 0.001}, {"max_requests": 10}):
        with pytest.raises(AskingError, match="nothing was submitted"):
            chat(server, tmp_path, **limits).ask(questions(12), "x")
    assert not server.batches
    assert len(chat(server, tmp_path).ask(questions(12), "x")) == 12
