"""Data sets of the hub, from folders in a hub's layout."""

import types

import pandas
import pytest
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from saematch.lm.source import LmSource
from saematch.texts.hub import HubSet, HubTexts
from saematch.texts.token_cache import load_texts, resolve_texts

COMMITS = ["a" * 40, "b" * 40]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """The library sleeps for five seconds after each data set that is not read to its end."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "web/data").mkdir(parents=True)
    (tmp_path / "web/code").mkdir()
    for part in range(2):
        texts = [f"text {part}-{n} " + "x" * (300 if n % 2 else 20) for n in range(40)]
        path = tmp_path / f"web/data/train-0000{part}-of-00002.parquet"
        pandas.DataFrame({"content": texts}).to_parquet(path)
    other = pandas.DataFrame({"content": [f"held out {n} " + "y" * 300 for n in range(9)]})
    other.to_parquet(tmp_path / "web/code/test-00000-of-00001.parquet")
    (tmp_path / "web/README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: plain, default: true, data_files: 'data/train-*'}\n"
        "- config_name: code\n  data_files: [{split: test, path: 'code/test-*'}]\n---\n"
    )
    return tmp_path


def load(folder, source=None, **settings):
    data_set = HubSet(str(folder / "web"), column="content", **(source or {}))
    return HubTexts({"web": data_set}, **{"n_texts": 10, "max_tokens": 64, **settings}).load()


def test_texts_are_drawn_at_random_and_short_ones_passed_over(folder):
    (texts,) = load(folder)
    assert texts.name == "web"
    assert len(set(texts.texts)) == 10
    assert all(len(text) > 300 for text in texts.texts)
    parts = {text[:7] for text in texts.texts}
    assert parts == {"text 0-", "text 1-"}, "of the whole data set"
    assert load(folder)[0].texts == texts.texts
    assert load(folder, seed=1)[0].texts != texts.texts
    assert len(load(folder, min_characters=1, n_texts=80)[0].texts) == 80


def test_config_and_split(folder):
    (texts,) = load(folder, {"config": "code", "split": "test"}, n_texts=9)
    assert all(text.startswith("held out") for text in texts.texts)


def test_what_cannot_be_read(folder):
    with pytest.raises(ValueError, match=r"'web' has no text of at least 999 characters"):
        load(folder, min_characters=999)
    missing = HubTexts({"a": HubSet("nobody/nothing")}, n_texts=1, max_tokens=9)
    with pytest.raises(ValueError, match=r"cannot read the data set 'nobody/nothing'.*dataset=loc"):
        missing.load()
    wrong = HubTexts({"a": HubSet(str(folder / "web"))}, n_texts=1, max_tokens=9)
    with pytest.raises(ValueError, match=r"\(no column 'text', only content:"):
        wrong.load()
    with pytest.raises(ValueError, match=r"cannot read the data set .*none"):
        load(folder, {"config": "none"})
    (folder / "web/web.py").write_text("")
    with pytest.raises(ValueError, match=r"scripts are no longer .*revision=refs/convert/parquet"):
        load(folder)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OfflineModeIsEnabled("offline mode is on\nand more"),
            r"\(offline mode is on\); use texts",
        ),
        (HTTPError("timed out"), r"\(timed out\); use texts on disk with dataset=local"),
        (
            OSError("401 Client Error"),
            r"accept its conditions .*set HF_TOKEN, or use texts",
        ),
    ],
)
def test_a_hub_that_gives_no_answer_in_one_line(tmp_path, monkeypatch, error, message):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    texts = HubTexts({"a": HubSet("nobody/nothing")}, n_texts=1, max_tokens=9)
    with pytest.raises(ValueError, match=message) as raised:
        texts.resolve(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.fixture
def hub(folder, monkeypatch):
    """A hub with one data set, whose commits are ``commits`` in turn; then it cannot be reached."""
    import datasets

    state = types.SimpleNamespace(commits=[], requests=[], read=[])
    open_folder = datasets.load_dataset

    def dataset_info(_, path, *, revision, timeout):
        state.requests.append((path, revision))
        if not state.commits:
            raise HTTPError("timed out")
        return types.SimpleNamespace(sha=state.commits.pop(0))

    def load_dataset(path, *arguments, revision, **settings):
        assert path == "some/web"
        state.read.append(revision)
        return open_folder(str(folder / "web"), *arguments, **settings)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return state


def test_the_newest_commit_is_pinned_recorded_and_read_once(hub, tiny, tmp_path, caplog):
    lm = LmSource(str(tiny / "lm"), "tiny").load()
    data_set = HubSet("some/web", column="content")
    spec = HubTexts({"web": data_set}, n_texts=3, max_tokens=9, seed=2)
    hub.commits = [COMMITS[0], COMMITS[0]]
    for _ in range(2):
        described = load_texts(resolve_texts(spec, tmp_path), lm).described["web"]
        assert described.pop("datasets")
        assert described.pop("n_special") == 12, "digits and the sign are <unk>"
        assert described == {
            "path": "some/web", "config": None, "split": "train", "column": "content",
            "revision": COMMITS[0], "n_texts": 3, "seed": 2, "min_characters": 200,
        }  # fmt: skip
    assert hub.requests == [("some/web", None)] * 2
    assert hub.read == COMMITS[:1], "the second time tokens are kept"

    assert load_texts(resolve_texts(spec, tmp_path), lm).described["web"]["revision"] == COMMITS[0]
    assert "the hub gives no answer (timed out), so the run uses commit" in caplog.text
    assert hub.read == COMMITS[:1]

    hub.commits = [COMMITS[1]]
    assert load_texts(resolve_texts(spec, tmp_path), lm).described["web"]["revision"] == COMMITS[1]
    assert hub.read == COMMITS, "a newer commit is read"


def test_a_pinned_commit_is_not_asked_for(hub, tmp_path):
    pinned = HubSet("some/web", revision=COMMITS[0])
    assert pinned.resolve(tmp_path) == pinned
    assert hub.requests == []


def test_a_folder_is_known_by_its_content(folder):
    data_set = HubSet(str(folder / "web"))
    before = data_set.described()["sha256"]
    assert data_set.resolve(folder) == data_set
    (folder / "web/README.md").write_text("")
    assert data_set.described()["sha256"] != before
