"""Explanations from Neuronpedia, against a server in its layout."""

import gzip
import json
import logging
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from conftest import N_FEATURES, random_sae
from explain.neuronpedia_server import LIMIT, Fault, NeuronpediaServer, row
from saematch import __version__
from saematch.core.files import replacing
from saematch.core.pairs import SaeKey
from saematch.explain import neuronpedia, neuronpedia_web
from saematch.explain.explanations import Explanation, ExplanationSource, FeatureKey, Inputs
from saematch.explain.neuronpedia import NeuronpediaExplanations
from saematch.sae.sources.registry import ExplainedSae

NAME = "tiny/3-tinyscope-res"
BATCH = f"/v1/{NAME}/explanations/batch-{{}}.jsonl.gz"
KEY, TWIN, FOUR = SaeKey("default", 3), SaeKey("again", 3), SaeKey("default", 4)


def explained(name=NAME, layer=3):
    sae = random_sae(layer, layer=layer)
    return replace(sae, origin=replace(sae.origin, neuronpedia_id=name))


SAES = {KEY: explained()}


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(neuronpedia_web, "BACKOFF_S", 0.002)


@pytest.fixture
def server():
    server = NeuronpediaServer()
    yield server
    server.close()


def fill(server, n_batches=3, name=NAME):
    """Eight features a batch, the last one of each without explanation."""
    for batch in range(n_batches):
        indices = range(8 * batch, 8 * batch + 7)
        server.export(name, [row(name, i, f"text {i}") for i in indices], batch)


def spec(server, **settings):
    settings = {"retries": 2, "timeout": 5.0, **settings}
    return NeuronpediaExplanations(exports=server.address, api=server.address, **settings)


def opened(server, folder, saes=SAES, **settings):
    source = spec(server, **settings)
    assert isinstance(source, ExplanationSource)
    assert not source.on_texts
    return source.open(saes, Inputs(folder))


def texts_of(texts, *features, key=KEY):
    """The explanations of features, each as its texts in order."""
    explanations = texts.of([FeatureKey(key, feature) for feature in features])
    return {key.feature: [e.text for e in of_key] for key, of_key in explanations.items()}


def parquet(folder, name=NAME):
    return folder / "explanations" / f"{name}.parquet"


def test_an_export_of_several_pages_and_batches(server, tmp_path, caplog):
    fill(server)
    server.export("tiny/3-tinyscope-res-65k", [row("tiny/other", 0, "not asked for")], 0)
    server.objects[f"v1/{NAME}/explanations/README"] = b"no batch"
    server.page = 2
    with caplog.at_level(logging.INFO, "saematch"):
        texts = opened(server, tmp_path)
    assert texts.features(KEY) == [i for i in range(N_FEATURES) if i % 8 != 7]
    assert texts_of(texts, 16, 0) == {16: ["text 16"], 0: ["text 0"]}
    (explanation,) = texts.of([FeatureKey(KEY, 9)])[FeatureKey(KEY, 9)]
    assert explanation == Explanation(
        "text 9", "gpt-4o-mini", "oai_token-act-pair", explanation.tag
    )
    tags = {texts.of([FeatureKey(KEY, i)])[FeatureKey(KEY, i)][0].tag for i in texts.features(KEY)}
    assert len(tags) == 3
    assert server.log.count("/") == 2, "two pages of the listing"
    assert server.asked(".gz") == [BATCH.format(i) for i in range(3)]
    assert server.agents == {f"saematch/{__version__}"}
    assert caplog.messages == ["3-tinyscope-res: 21 of 24 features explained (gpt-4o-mini 21)"]
    assert [path.name for path in parquet(tmp_path).parent.iterdir()] == [parquet(tmp_path).name]


def test_a_second_open_needs_no_network(server, tmp_path):
    fill(server)
    first = opened(server, tmp_path)
    server.log.clear()
    second = opened(server, tmp_path)
    keys = [FeatureKey(KEY, feature) for feature in first.features(KEY)]
    assert second.of(keys) == first.of(keys)
    assert server.log == []


def test_saes_that_share_a_source_and_others(server, tmp_path):
    fill(server)
    four = "tiny/4-tinyscope-res"
    server.export(four, [row(four, 0, "of layer 4")], 0)
    saes = {KEY: explained(), TWIN: explained(), FOUR: explained(four, 4)}
    texts = opened(server, tmp_path, saes)
    assert len(server.asked(".gz")) == 4
    assert len(server.asked("/")) == 6
    assert texts_of(texts, 0, key=TWIN) == texts_of(texts, 0) == {0: ["text 0"]}
    assert texts_of(texts, 0, key=FOUR) == {0: ["of layer 4"]}
    assert texts.features(FOUR) == [0]


def test_several_folders_and_explainers(server, tmp_path, caplog):
    """The explainer of most features comes first, then by name; the same text counts once."""
    server.export(NAME, [row(NAME, i, f"rare {i}", "a-rare") for i in range(2)], 0)
    often = [row(NAME, i, f"often {i}", "z-often") for i in range(4)]
    tied = [row(NAME, i, f"tied {i}", "b-rare") for i in (1, 2)]
    server.export(NAME, tied + often, 0, "explanations-z-often")
    server.export(NAME, often[:3], 1)
    with caplog.at_level(logging.INFO, "saematch"):
        texts = opened(server, tmp_path, single=0)
    assert texts_of(texts, 0, 1, 2, 3, 4) == {
        0: ["often 0", "rare 0"],
        1: ["often 1", "rare 1", "tied 1"],
        2: ["often 2", "tied 2"],
        3: ["often 3"],
    }
    assert "4 of 24 features explained (z-often 4, a-rare 2, b-rare 2)" in caplog.messages[0]
    texts = opened(server, tmp_path, single=0, explainer="a-rare")
    assert texts.features(KEY) == [0, 1]
    assert texts_of(texts, 0, 1, 2) == {0: ["rare 0"], 1: ["rare 1"]}
    with pytest.raises(ValueError, match=r"no text of explain\.explainer=gpt-9, only of a-rare, b"):
        opened(server, tmp_path, explainer="gpt-9")


def test_embeddings_empty_texts_and_odd_line_ends(server, tmp_path, caplog):
    key = server.export(
        NAME,
        [
            row(NAME, 0, "a string", embedding="[0.5, -0.25]"),
            row(NAME, 1, "a list", embedding=[1, 0.125]),
            row(NAME, 2, "none"),
            row(NAME, 3, "null", embedding=None),
            row(NAME, 4, "one\u2028line\x85", embedding=""),
            row(NAME, 5, "", embedding=[1.0]),
            row(NAME, 6, " \n"),
            row(NAME, 7, None),
        ],
        0,
    )
    server.objects[key] += gzip.compress(json.dumps(row(NAME, 8, "member")).encode(), mtime=0)
    with caplog.at_level(logging.INFO, "saematch"):
        texts = opened(server, tmp_path, single=0)
    assert texts.features(KEY) == [0, 1, 2, 3, 4, 8]
    assert texts_of(texts, 4) == {4: ["one\u2028line\x85"]}
    assert f"{NAME}: 3 explanations of the export are empty and not used" in caplog.messages
    table = pq.read_table(parquet(tmp_path))
    assert set(table.column_names) == {
        "feature", "text", "explainer", "method", "tag", "embedding",
    }  # fmt: skip
    assert table.schema.field("embedding").type.value_type == "float"
    kept = dict(zip(*(table[c].to_pylist() for c in ("feature", "embedding")), strict=True))
    assert kept == {0: [0.5, -0.25], 1: [1.0, 0.125], 2: None, 3: None, 4: None, 8: None}
    assert np.asarray(table["embedding"][0].values).dtype == np.float32


@pytest.mark.parametrize("after", [None, "0", "1"])
def test_a_server_that_is_busy_for_a_while(server, tmp_path, after):
    fill(server)
    headers = () if after is None else (("Retry-After", after),)
    server.fault("/", Fault(503), times=2)
    server.fault(BATCH.format(1), LIMIT._replace(headers=headers), times=1)
    started = time.monotonic()
    texts = opened(server, tmp_path)
    assert len(texts.features(KEY)) == 21
    assert server.log.count("/") == 3
    assert len(server.asked(".gz")) == 4
    waited = time.monotonic() - started
    assert waited >= 1 if after == "1" else waited < 0.9


def test_a_wait_that_the_server_asks_for_is_logged(server, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(neuronpedia_web, "LONG_S", 0.5)
    fill(server, 1)
    server.fault("/", Fault(503, (("Retry-After", "1"),)), times=1)
    opened(server, tmp_path)
    assert "the server requests 1 s of delay (status 503)" in caplog.messages


def test_a_connection_cut_within_a_batch(server, tmp_path):
    fill(server)
    server.fault(BATCH.format(0), Fault(cut=True), times=2)
    texts = opened(server, tmp_path, connections=1)
    assert len(texts.features(KEY)) == 21
    assert len(server.asked("batch-0")) == 3


def test_a_killed_fetch_continues_with_the_missing_batches(server, tmp_path):
    fill(server)
    server.fault(BATCH.format(1), Fault(cut=True))
    with pytest.raises(ValueError, match=r"cannot fetch http://.*batch-1\.jsonl\.gz .* are stored"):
        opened(server, tmp_path, connections=3)
    assert not parquet(tmp_path).exists()
    folder = parquet(tmp_path).with_name("3-tinyscope-res.batches")
    assert len(list(folder.iterdir())) == 2
    (folder / ".half-1.jsonl.gz.123.part").write_bytes(b"\x1f")  # what a kill leaves behind
    server.heal()
    server.log.clear()
    assert len(opened(server, tmp_path).features(KEY)) == 21
    assert server.log == ["/", BATCH.format(1)]
    assert not folder.exists()


def test_another_run_that_has_finished_takes_the_batches_away(server, tmp_path, monkeypatch):
    fill(server)
    folder = parquet(tmp_path).with_name("3-tinyscope-res.batches")

    @contextmanager
    def taken_away(path, keep=None):
        with replacing(path, keep) as part:
            shutil.rmtree(folder, ignore_errors=True)
            yield part

    monkeypatch.setattr(neuronpedia_web, "replacing", taken_away)
    assert len(opened(server, tmp_path, connections=1).features(KEY)) == 21
    assert not folder.exists()


def test_a_kept_batch_that_got_damaged_is_fetched_again(server, tmp_path):
    fill(server)
    server.fault(BATCH.format(2), Fault(500))
    with pytest.raises(ValueError, match=r"batch-2\.jsonl\.gz answers with status 500"):
        opened(server, tmp_path, retries=0)
    for path in parquet(tmp_path).parent.glob("*.batches/*"):
        path.write_bytes(bytes(path.stat().st_size))
    server.heal()
    assert len(opened(server, tmp_path).features(KEY)) == 21


GOOD = gzip.compress(json.dumps(row(NAME, 0, "a text")).encode(), mtime=0)


@pytest.mark.parametrize(
    ("content", "sent", "reason"),
    [
        (GOOD, GOOD[:-9], r"\d+ bytes of \d+"),
        (GOOD, GOOD + b"\0", r"\d+ bytes of \d+"),
        (GOOD[:-6], None, "end-of-stream"),
        (GOOD[:20] + b"####" + GOOD[24:], None, ""),
        (b"<html>" + GOOD, None, "Not a gzipped file"),
        (gzip.compress(b'{"modelId": "tiny", "laye', mtime=0), None, "Unterminated string"),
        (gzip.compress(b"\xff", mtime=0), None, "utf-8"),
    ],
)
def test_a_batch_that_stays_broken(server, tmp_path, content, sent, reason):
    fill(server, 1)
    server.objects[BATCH.format(1)[1:]] = content
    if sent is not None:
        server.fault(BATCH.format(1), Fault(200, body=sent))
    message = rf"batch-1\.jsonl\.gz is broken \(.*{reason}.*\) after 3 attempts; .* explain=own and"
    with pytest.raises(ValueError, match=message):
        opened(server, tmp_path)
    assert len(server.asked("batch-1")) == 3
    assert not parquet(tmp_path).exists()


def test_a_batch_that_arrives_broken_once(server, tmp_path):
    fill(server)
    server.fault(BATCH.format(0), Fault(200, body=b"half"), times=1)
    assert len(opened(server, tmp_path).features(KEY)) == 21


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"layer": "3-tinyscope-res-65k"},
            "explanations of tiny/3-tinyscope-res-65k, .* another S",
        ),
        ({"modelId": "large"}, "explanations of large/3-tinyscope-res, which is another SAE"),
        ({"index": str(N_FEATURES)}, "has feature 24, but the SAE has features 0 to 23"),
        ({"index": "-1"}, "a row of .*batch-1.jsonl.gz is invalid"),
        ({"index": None}, "a row of .*batch-1.jsonl.gz is invalid"),
        ({"embedding": "[0.5, "}, "a row of .*batch-1.jsonl.gz is invalid"),
        ({"description": 7}, "a row of .*batch-1.jsonl.gz is invalid"),
    ],
)
def test_rows_of_another_sae(server, tmp_path, wrong, message):
    fill(server, 1)
    server.export(NAME, [row(NAME, 8, "right"), {**row(NAME, 9, "wrong"), **wrong}], 1)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            opened(server, tmp_path)


def test_refresh_fetches_what_has_changed(server, tmp_path):
    fill(server)
    server.features[f"{NAME}/23"] = b"null"
    texts_of(opened(server, tmp_path), 23)
    server.export(NAME, [row(NAME, 0, "changed"), row(NAME, 7, "new")], 0)
    del server.objects[BATCH.format(2)[1:]]
    assert texts_of(opened(server, tmp_path), 0) == {0: ["text 0"]}
    server.log.clear()
    texts = opened(server, tmp_path, refresh=True)
    assert server.log == ["/", BATCH.format(0)]
    assert texts.features(KEY) == [0, *range(7, 15)]
    assert texts_of(texts, 0, 8, 23) == {0: ["changed"], 8: ["text 8"]}
    assert server.log[2:] == [f"/api/feature/{NAME}/23"], "asked again"


def single(*texts, **more):
    rows = [
        {"description": text, "explanationModelName": explainer, "typeName": "np_max-act", **more}
        for text, explainer in texts
    ]
    return json.dumps({"modelId": "tiny", "explanations": rows}).encode()


def test_features_that_the_export_lacks_are_asked_for_once(server, tmp_path, caplog):
    fill(server)
    server.features[f"{NAME}/7"] = single(("late", "human"), ("newer", "gpt-4o-mini"), (" ", "x"))
    server.features[f"{NAME}/15"] = b"null"
    texts = opened(server, tmp_path)
    assert texts_of(texts, 7, 8, 15, 23) == {7: ["newer", "late"], 8: ["text 8"]}
    seven = texts.of([FeatureKey(KEY, 7)])[FeatureKey(KEY, 7)]
    assert seven[0] == Explanation("newer", "gpt-4o-mini", "np_max-act", "api")
    again = opened(server, tmp_path)
    assert texts_of(again, 7, 15, 23) == {7: ["newer", "late"]}
    assert server.asked("/api/") == [f"/api/feature/{NAME}/{i}" for i in (15, 23, 7)]
    assert 7 not in again.features(KEY)
    assert texts_of(opened(server, tmp_path, explainer="gpt-4o-mini"), 7) == {7: ["newer"]}
    kept = json.loads(parquet(tmp_path).with_name("3-tinyscope-res.single.json").read_text())
    assert {feature: len(of) for feature, of in kept.items()} == {"7": 2, "15": 0, "23": 0}
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_more_missing_features_than_are_asked_for(server, tmp_path, caplog):
    fill(server)
    for feature in (7, 15, 23):
        server.features[f"{NAME}/{feature}"] = single((f"late {feature}", "x"))
    texts = opened(server, tmp_path, single=2)
    for _ in range(2):
        assert texts_of(texts, 23, 15, 7) == {15: ["late 15"], 7: ["late 7"]}
    warned = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert warned == [
        f"{NAME}: the export lacks 3 features that the run needs; 2 of them are fetched one by "
        "one, 1 have no explanation (explain.single=2)"
    ]
    assert len(server.asked("/api/")) == 2
    assert texts_of(opened(server, tmp_path, single=2), 23) == {}
    assert len(server.asked("/api/")) == 2, "a later run gets the same"


def test_what_was_asked_for_is_kept_when_the_site_fails(server, tmp_path):
    fill(server)
    server.features[f"{NAME}/7"] = single(("late", "x"))
    server.fault(f"/api/feature/{NAME}/15", LIMIT)
    message = (
        rf"/api/feature/{NAME}/15 answers with status 429: its limit is reached \(endpoint "
        r"/api/feature, limitPerWindow 25000, requestWindow 60 minutes\).*explain\.single=0"
    )
    with pytest.raises(ValueError, match=message):
        texts_of(opened(server, tmp_path), 7, 15)
    assert len(server.asked("/15")) == 3
    server.heal()
    assert texts_of(opened(server, tmp_path), 7, 15) == {7: ["late"]}
    assert len(server.asked("/api/feature")) == 5, "feature 7 is not asked for again"


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"explanations": [{"text": "x"}]}'])
def test_an_answer_that_is_not_understood(server, tmp_path, body):
    fill(server)
    server.features[f"{NAME}/7"] = body
    with pytest.raises(ValueError, match=rf"/api/feature/{NAME}/7 has an invalid .*single=0"):
        texts_of(opened(server, tmp_path), 7)


def test_a_limit_without_a_body_of_its_own(server, tmp_path):
    server.fault("/", Fault(429, body=b"slow down"))
    with pytest.raises(ValueError, match=r"status 429: its limit is reached \(slow down\)"):
        opened(server, tmp_path, retries=0)


def test_listings_without_explanations(server, tmp_path):
    server.objects[f"v1/{NAME}/features/batch-0.jsonl.gz"] = GOOD
    message = rf"nothing under v1/{NAME}/explanations.*explain=own and explain=jsonl"
    with pytest.raises(ValueError, match=message):
        opened(server, tmp_path)
    server.fault("/", Fault(200, body=b"<html><p>log in</html>"), times=1)
    with pytest.raises(ValueError, match=r"does not list its objects as S3 does .*log in"):
        opened(server, tmp_path)
    server.fault("/", Fault(403, body=b"<Code>AccessDenied</Code>"), times=1)
    with pytest.raises(ValueError, match="status 403: <Code>AccessDenied</Code>"):
        opened(server, tmp_path)
    server.export(NAME, [row(NAME, 0, "")], 0)
    with pytest.raises(ValueError, match="has no text"):
        opened(server, tmp_path)


def test_a_server_that_is_not_there(server, tmp_path):
    server.close()
    message = rf"cannot fetch {server.address}/ .*refused.*explain=own and explain=jsonl"
    with pytest.raises(ValueError, match=message):
        opened(server, tmp_path)


def test_a_proxy_of_the_environment_is_used(server, tmp_path, monkeypatch):
    fill(server, 1)
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("no_proxy", "")
    elsewhere = NeuronpediaExplanations(exports="http://bucket.invalid", retries=0)
    assert len(elsewhere.open(SAES, Inputs(tmp_path)).features(KEY)) == 7
    assert server.log == ["/", BATCH.format(0)]


def test_saes_without_explanations_are_refused(server, tmp_path, monkeypatch):
    sae = random_sae(3, layer=3)
    monkeypatch.setattr(neuronpedia, "explained_near", lambda *_: [])
    with pytest.raises(ValueError, match=r"layer 3, random/3.*do not apply to it"):
        opened(server, tmp_path, {KEY: sae})
    with pytest.raises(ValueError, match=r"neuronpedia_id='\.\./x': must be model/source"):
        opened(server, tmp_path, {KEY: explained("../x")})
    narrow = random_sae(0, n_features=8, layer=3)
    narrow = replace(narrow, origin=replace(narrow.origin, neuronpedia_id=NAME))
    fill(server)
    with pytest.raises(ValueError, match="differ in number of features"):
        opened(server, tmp_path, {KEY: explained(), TWIN: narrow})


def test_the_variant_that_is_explained_is_named(server, tmp_path, monkeypatch):
    sae = random_sae(3, layer=3)
    near = ExplainedSae("canon", "layer_3", "l3/l0_70", NAME)
    monkeypatch.setattr(neuronpedia, "explained_near", lambda *_: [near, near])
    with pytest.raises(ValueError, match=rf"there are explanations of canon/layer_3 \({NAME}\); "):
        opened(server, tmp_path, {KEY: sae})


@pytest.mark.parametrize(
    "wrong",
    [{"single": -1}, {"connections": 0}, {"retries": -1}, {"timeout": 0.0}, {"api": "np.org"}],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=rf"explain\.{next(iter(wrong))}="):
        NeuronpediaExplanations(**wrong)
