"""A text is embedded once, vectors are right, and a server that fails ends in one line."""

import logging

import numpy as np
import pytest

from chat.embedding_server import EmbeddingServer, counts
from chat.judge_server import KEY
from saematch.chat import embeddings
from saematch.chat.asking import AskingError
from saematch.chat.embeddings import EmbeddingEndpoint

TEXTS = [f"{'a' * n}{'b' * (n % 3)}c" for n in range(7)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(embeddings, "RETRY_SECONDS", 0.01)


@pytest.fixture
def served():
    servers = []

    def start(**options):
        servers.append(EmbeddingServer(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def unit(texts):
    vectors = np.array([counts(text) for text in texts])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_each_text_is_sent_once_and_a_second_run_needs_neither_server_nor_key(served, tmp_path):
    server = served()
    spec = EmbeddingEndpoint("m", server.url, batch_size=3)
    vectors = spec.embed([*TEXTS, TEXTS[0]], tmp_path / "s")
    np.testing.assert_allclose(vectors, unit([*TEXTS, TEXTS[0]]), atol=1e-6)
    assert vectors.dtype == np.float32
    assert sorted(text for batch in server.batches for text in batch) == sorted(TEXTS)
    assert sorted(map(len, server.batches)) == [1, 3, 3]
    server.close()
    away = EmbeddingEndpoint("m", "http://127.0.0.1:9/v1", "NO_SUCH_KEY")
    np.testing.assert_array_equal(away.embed(TEXTS, tmp_path / "s"), vectors[:-1])
    other = EmbeddingEndpoint("other", "http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(AskingError, match="cannot reach"):
        other.embed(TEXTS, tmp_path / "s")


def test_the_settings_of_the_transfer_are_no_part_of_the_text_of_settings():
    assert repr(EmbeddingEndpoint("m", "http://x/v1", "A_KEY")) == "EmbeddingEndpoint(model='m')"


def test_no_more_requests_than_allowed_run_at_a_time(served, tmp_path):
    server = served()
    EmbeddingEndpoint("m", server.url, batch_size=1, concurrency=2).embed(TEXTS, tmp_path / "s")
    assert server.most_in_flight == 2


def test_temporary_errors_and_answers_that_are_none_are_asked_again(served, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    server = served(faults=("429", "500", "html", "short", "words"))
    spec = EmbeddingEndpoint("m", server.url, batch_size=7)
    np.testing.assert_allclose(spec.embed(TEXTS, tmp_path / "s"), unit(TEXTS), atol=1e-6)
    assert len(server.batches) == 1
    assert "HTTP Request" not in caplog.text
    assert "embeddings by m: 7 texts in total, 7 to embed" in caplog.text


def test_a_run_that_stops_keeps_its_vectors(served, tmp_path):
    server = served(faults=("", "", "400"))
    spec = EmbeddingEndpoint("m", server.url, batch_size=1, concurrency=1)
    with pytest.raises(AskingError, match="refuses the request"):
        spec.embed(TEXTS[:3], tmp_path / "s")
    spec.embed(TEXTS[:3], tmp_path / "s")
    assert sorted(text for batch in server.batches for text in batch) == sorted(TEXTS[:3])


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (("404",), r"has no model 'm' .*set embedding\.model, or end embedding\.base_url with /v1"),
        (("302",), r"redirect to http://evil\.test/, .*set embedding\.base_url to it"),
        (("400",), "refuses the request"),
        (("500", "500"), r"refuses the request \(Error code: 500"),
        (("html", "html"), r"without a vector for each text: end embedding\.base_url with /v1"),
    ],
)
def test_a_server_that_does_not_embed_is_refused_in_one_line(served, tmp_path, faults, message):
    spec = EmbeddingEndpoint("m", served(faults=faults).url, retries=1)
    with pytest.raises(AskingError, match=message) as refused:
        spec.check(tmp_path / "s")
    assert "\n" not in str(refused.value)
    spec.check(tmp_path / "s")  # the server has recovered


def test_a_wrong_key_is_named_by_its_variable_and_never_shown(served, tmp_path, monkeypatch):
    spec = EmbeddingEndpoint("m", served(key=KEY).url, "A_KEY", retries=0)
    with pytest.raises(AskingError, match="A_KEY is not set"):
        spec.check(tmp_path / "s")
    monkeypatch.setenv("A_KEY", "sk-wrong")
    with pytest.raises(AskingError, match=r"refuses the key .* variable A_KEY") as refused:
        spec.check(tmp_path / "s")
    assert "sk-wrong" not in str(refused.value)
    monkeypatch.setenv("A_KEY", KEY)
    spec.check(tmp_path / "s")


def test_two_models_of_one_name_are_not_mixed(served, tmp_path):
    spec = EmbeddingEndpoint("m", served(faults=("", "longer")).url)
    spec.embed(TEXTS[:2], tmp_path / "s")
    with pytest.raises(AskingError, match="have 3 and 4 numbers: two models have this name"):
        spec.embed(TEXTS, tmp_path / "s")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "ftp://x"}, r"embedding\.base_url='ftp://x' must begin with http"),
        ({"base_url": "http://me:pw@x/v1"}, r"embedding\.base_url contains a password"),
        ({"key_variable": "sk-1"}, r"embedding\.key_variable must be the name"),
        ({"batch_size": 0}, r"embedding\.batch_size=0"),
        ({"model": ""}, r"embedding\.model=''"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingEndpoint(**{"model": "m", "base_url": "http://x/v1"} | settings)
