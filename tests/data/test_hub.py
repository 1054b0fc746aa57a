"""Data sets of the hub, from folders in a hub's layout."""

import pandas
import pytest

from saematch.data.hub import HubSet, HubTexts


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "web/data").mkdir(parents=True)
    for part in range(2):
        texts = [f"text {part}-{n} " + "x" * (300 if n % 2 else 20) for n in range(40)]
        path = tmp_path / f"web/data/train-0000{part}-of-00002.parquet"
        pandas.DataFrame({"content": texts}).to_parquet(path)
    return tmp_path


def load(folder, **settings):
    one = HubSet(str(folder / "web"), column="content")
    return HubTexts({"web": one}, **{"n_texts": 10, "max_tokens": 64, **settings}).load()


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


def test_what_cannot_be_read(folder):
    with pytest.raises(ValueError, match=r"has only 40 texts of at least 200 characters"):
        load(folder, n_texts=41)
    missing = HubTexts({"a": HubSet("nobody/nothing")}, n_texts=1, max_tokens=9)
    with pytest.raises(ValueError, match=r"cannot read the data set 'nobody/nothing'.*dataset=loc"):
        missing.load()
    wrong = HubTexts({"a": HubSet(str(folder / "web"), column="text")}, n_texts=1, max_tokens=9)
    with pytest.raises(ValueError, match=r"cannot read the data set .*text"):
        wrong.load()
