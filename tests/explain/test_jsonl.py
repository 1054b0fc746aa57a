"""Explanations in the user's own files."""

import hashlib
import json
from dataclasses import replace

import pytest

from conftest import N_FEATURES, random_sae
from saematch.core.pairs import SaeKey
from saematch.explain.explanations import Explanation, ExplanationSource, FeatureKey, Inputs
from saematch.explain.jsonl import JsonlExplanations

THREE, FOUR = SaeKey("default", 3), SaeKey("default", 4)
SAES = {THREE: random_sae(3, layer=3), FOUR: random_sae(4, layer=4)}


def write(path, *rows):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def opened(path, saes=SAES):
    source = JsonlExplanations(str(path))
    assert isinstance(source, ExplanationSource)
    assert not source.on_texts
    source.check(saes)
    return source.open(saes, Inputs(path.parent))


def test_one_file_a_layer(tmp_path):
    path = write(
        tmp_path / "labels_3.jsonl",
        {"feature": 7, "text": "verbs"},
        {"feature": 2, "text": "one\u2028line", "explainer": "me"},
        {"feature": 7, "text": "actions", "layer": 3},
    )
    write(tmp_path / "labels_4.jsonl", {"feature": N_FEATURES - 1, "text": "nouns"})
    texts = opened(tmp_path / "labels_{layer}.jsonl")
    assert texts.features(THREE) == [2, 7]
    assert texts.features(FOUR) == [N_FEATURES - 1]
    tag = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    seven, two, none = FeatureKey(THREE, 7), FeatureKey(THREE, 2), FeatureKey(FOUR, 7)
    assert texts.of([seven, none, two]) == {
        seven: (
            Explanation("verbs", "labels_3", tag=tag),
            Explanation("actions", "labels_3", tag=tag),
        ),
        two: (Explanation("one\u2028line", "me", tag=tag),),
    }


def test_one_file_for_all_layers(tmp_path):
    path = write(
        tmp_path / "all.jsonl",
        {"layer": 4, "feature": 0, "text": "of four"},
        {"layer": 9, "feature": 1000, "text": "of a layer that the run leaves out"},
        {"layer": 3, "feature": 0, "text": "of three"},
    )
    with path.open("a") as file:
        file.write("\n  \n")
    texts = opened(path)
    of = texts.of([FeatureKey(THREE, 0), FeatureKey(FOUR, 0)])
    assert [e.text for (e,) in of.values()] == ["of three", "of four"]
    assert texts.features(THREE) == [0]


GOOD = {"layer": 3, "feature": 0, "text": "a text"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"line 2 is not a JSON object: "),
        ("[3, 0]", r"line 2 is not a JSON object: '\[3, 0\]'"),
        ('{"layer": 3, "feature": 0}', r"line 2: 'text' must be a text, not None"),
        ('{"layer": 3, "text": "x"}', r"line 2: 'feature' must be a whole number from 0, not None"),
        ('{"layer": 9, "text": "x"}', r"line 2: 'feature' must be a whole number from 0, not None"),
        ('{"feature": 0, "text": "x"}', r"line 2: 'layer' must .* with \{layer\} in explain.path"),
        ('{"layer": 3, "feature": 0, "text": " "}', r"line 2: 'text' must be a text, not ' '"),
        ('{"layer": 3, "feature": true, "text": "x"}', r"line 2: 'feature' must .*, not True"),
        ('{"layer": 3, "feature": "1", "text": "x"}', r"line 2: 'feature' must .*, not '1'"),
        ('{"layer": 3, "feature": -1, "text": "x"}', r"line 2: 'feature' must .*, not -1"),
        (
            '{"layer": 3, "feature": 24, "text": "x"}',
            r"line 2: the SAE .* no feature 24, .* 23$",
        ),
        ('{"layer": 3, "feature": 0, "text": "x", "explainer": ""}', r"line 2: 'explainer' must"),
    ],
)
def test_a_line_that_is_refused(tmp_path, line, message):
    path = write(tmp_path / "all.jsonl", GOOD)
    with path.open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=message) as caught:
        JsonlExplanations(str(path)).check({THREE: SAES[THREE]})
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_refused(tmp_path):
    missing = JsonlExplanations(str(tmp_path / "{layer}.jsonl"))
    with pytest.raises(ValueError, match=r"cannot read the explanations in .*3\.jsonl"):
        missing.check(SAES)
    write(tmp_path / "3.jsonl", GOOD)
    write(tmp_path / "4.jsonl", GOOD)
    with pytest.raises(ValueError, match=r"4\.jsonl, line 1 is of layer 3, but the file is of lay"):
        missing.check(SAES)
    (tmp_path / "4.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"4\.jsonl explains no feature of the SAE of layer 4"):
        missing.check(SAES)
    (tmp_path / "4.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"cannot read .*4\.jsonl"):
        missing.check(SAES)
    with pytest.raises(ValueError, match=r"explain\.path is empty"):
        JsonlExplanations("")


def test_a_file_for_each_suite(tmp_path):
    wide = SaeKey("wide", 3)
    saes = {THREE: SAES[THREE], wide: random_sae(5, n_features=30, layer=3)}
    write(tmp_path / "default.jsonl", {"layer": 3, "feature": 2, "text": "of one"})
    write(tmp_path / "wide.jsonl", {"layer": 3, "feature": 29, "text": "of the other"})
    texts = opened(tmp_path / "{suite}.jsonl", saes)
    assert (texts.features(THREE), texts.features(wide)) == ([2], [29])


def test_a_line_means_one_sae_of_its_layer(tmp_path):
    path = write(tmp_path / "all.jsonl", GOOD)
    again = SaeKey("again", 3)
    same = opened(path, {THREE: SAES[THREE], again: SAES[THREE]})
    assert same.features(again) == [0]
    other = replace(SAES[THREE], origin=replace(SAES[THREE].origin, sae_id="another"))
    with pytest.raises(ValueError, match="two SAEs of layer 3, random/3 and random/another"):
        JsonlExplanations(str(path)).check({THREE: SAES[THREE], again: other})
