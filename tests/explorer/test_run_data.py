"""Folders that are no finished run with matches, and damaged files, end in one line."""

import json
import shutil

import pandas as pd
import pytest

from hand_run import write_hand_run
from matches import permutation
from saematch.core.errors import InputError
from saematch.core.pairs import Pair, SaeKey
from saematch.core.results import Results
from saematch.explorer.run_data import RunData
from synthetic_run import write_run

FIRST = SaeKey("default", 0)
PAIR = Pair.of_layers(0, 1)


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", 2, 16, 4)


def message_of(read, *arguments):
    with pytest.raises(InputError) as refused:
        read(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"status": "running"}, "has the status running; run the same command again with run_id="),
        ({"status": "failed", "error": "ValueError: x"}, "has the status failed (ValueError: x)"),
        ({"status": "interrupted"}, "has the status interrupted"),
        ({"tables": {}}, "this run has no matches"),
        ({"schema": 1}, "has schema 1 and this saematch reads schema 2"),
        ({"schema": 9}, "has schema 9"),
        ({"tables": {"layers": [], "matches": [{"arm": "a"}]}}, "results.json is damaged"),
        ({"tables": {"layers": [{"suite": "default", "layer": 0, "n_features": None}],
                     "matches": [{"arm": "a"}]}}, "results.json is damaged"),
        ({"tables": 3}, "results.json is damaged"),
    ],
)  # fmt: skip
def test_runs_without_a_page_are_refused(folder, change, message):
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in message_of(RunData.open, folder)


def test_a_pair_needs_both_saes(folder):
    path = folder / "results.json"
    content = json.loads(path.read_text())
    del content["tables"]["layers"][1]
    path.write_text(json.dumps(content))
    assert "results.json is damaged" in message_of(RunData.open, folder)


def test_folders_without_a_run_are_refused(tmp_path):
    assert "has no results.json" in message_of(RunData.open, tmp_path)
    assert "absent does not exist" in message_of(RunData.open, tmp_path / "absent")
    (tmp_path / "file").write_text("")
    assert "has no results.json" in message_of(RunData.open, tmp_path / "file")
    (tmp_path / "results.json").mkdir()
    assert "it is a folder" in message_of(RunData.open, tmp_path)
    Results("train", {}, {}, "finished").save(tmp_path / "trained/results.json")
    assert "no matches" in message_of(RunData.open, tmp_path / "trained")


@pytest.mark.parametrize(
    "name, read",
    [
        ("features/0.parquet", lambda run: run.features(FIRST)),
        ("evaluations/profile/0.parquet", lambda run: run.features(FIRST)),
        ("evaluations/profile/contexts/0.parquet", lambda run: run.contexts(FIRST)),
        ("evaluations/profile/partners/0.parquet", lambda run: run.partners(FIRST)),
        ("evaluations/verify/0-1.parquet", lambda run: run.verified(PAIR)),
        ("matches/folded/0-1.safetensors", lambda run: run.match("folded", PAIR)),
    ],
)
def test_damaged_files_are_named(folder, name, read):
    run = RunData.open(folder)
    path = folder / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-6] ^= 0xFF  # in the length of a Parquet file's footer, in the last weight of a match
    for content in (b"", b"x", whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(content)
        assert str(path) in message_of(read, run)
    path.unlink()
    path.mkdir()
    assert str(path) in message_of(read, run)
    shutil.rmtree(path)
    path.write_bytes(whole)
    assert read(run) is not None


def test_parquet_files_of_another_kind_are_damaged(folder):
    run = RunData.open(folder)
    path = folder / "features/0.parquet"
    pd.DataFrame({"x": [1]}).to_parquet(path)
    assert str(path) in message_of(run.features, FIRST)
    pd.DataFrame({"feature": [3, 3], "explanation": "x"}).to_parquet(path)
    assert "two rows" in message_of(run.features, FIRST)


@pytest.mark.parametrize("checksum", [True, False])
def test_any_flipped_byte_ends_in_one_line_or_in_a_table(folder, checksum):
    """With checksums, no flipped byte in a value passes; the rest are in statistics and names."""
    run = RunData.open(folder)
    path = folder / "evaluations/verify/0-1.parquet"
    before = pd.read_parquet(path)
    before.to_parquet(path, write_page_checksum=checksum)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), len(whole) // 80):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            after = run.verified(PAIR)
            if checksum:
                assert after.to_numpy().tolist() == before.to_numpy().tolist()
        except InputError as error:
            refused += str(path) in str(error)
    assert refused > 20


def test_a_missing_match_and_one_of_other_saes_are_refused(folder):
    run = RunData.open(folder)
    path = folder / "matches/folded/0-1.safetensors"
    permutation(0, 7).save(path)
    message = message_of(run.match, "folded", PAIR)
    assert message.startswith(f"{path} matches 7 with 7 features, but the SAEs of this run have 16")
    path.unlink()
    assert str(path) in message_of(run.match, "folded", PAIR)
    assert run.match("folded", Pair.of_layers(1, 2)) is None


def test_what_a_run_does_not_have_is_answered_with_what_it_has(folder, tmp_path):
    run = RunData.open(folder)
    assert run.sae(1) == SaeKey("default", 1)
    assert run.chosen_arms([]) == ["folded", "cosine"]
    assert run.chosen_pairs(["0-1"]) == run.chosen_pairs([]) == [PAIR]
    assert "choose among layer 0, layer 1" in message_of(run.sae, 2)
    assert "no suite wide: choose one of default" in message_of(run.sae, 0, "wide")
    assert "features 0 to 15" in message_of(run.check_feature, FIRST, 16)
    assert "no arm x: choose among folded, cosine" in message_of(run.chosen_arms, ["x"])
    assert "pair 3-4: choose among 0-1" in message_of(run.chosen_pairs, ["3-4"])
    suites = {("m", Pair.of_layers(0, 1, suite)): permutation(0, 3) for suite in ("a", "b")}
    two = RunData.open(write_hand_run(tmp_path / "two", suites))
    assert "several suites: choose one of a, b with --suite" in message_of(two.sae, 0)
    assert two.sae(0, "b") == SaeKey("b", 0)
    assert two.chosen_pairs(["b/0-1"]) == [Pair.of_layers(0, 1, "b")]


def test_verdicts_of_a_feature_are_those_with_it_at_either_end(tmp_path):
    rows = [
        {**PAIR.columns(), "arm": "m", "source_feature": source, "target_feature": target,
         "label": label}
        for source, target, label in ((1, 2, "SAME"), (2, 1, "MAYBE"), (0, 0, "DIFFERENT"))
    ]  # fmt: skip
    matches = {("m", PAIR): permutation(0, 3)}
    run = RunData.open(write_hand_run(tmp_path, matches, judgements=rows))
    assert [row["label"] for row in run.judged(FIRST, 1)] == ["SAME"]
    assert [row["label"] for row in run.judged(PAIR.target, 1)] == ["MAYBE"]
