"""A real LLM behind a real server judges: the path works; of quality it says nothing.

``make test-judge`` installs a model of 135 million parameters and runs this.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from saematch.app.configuration import build
from saematch.judge.verdicts import LABELS, SCORES
from saematch.runs.run import run

MODEL = Path(__file__).parents[2] / "outputs/models/smollm2_135m"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Serve the model on this machine, without any network."""
    assert MODEL.exists(), f"{MODEL} is not there: make smollm2"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(MODEL),
               "--device", "cpu", "--dtype", "bfloat16",
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    log = (tmp_path_factory.mktemp("serve") / "log").open("w")
    server = subprocess.Popen(command, stdout=log, stderr=log,
                              env=os.environ | {"HF_HUB_OFFLINE": "1"})  # fmt: skip
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, Path(log.name).read_text()
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


@pytest.mark.llm
def test_a_served_model_judges_and_the_counts_add_up(url, tmp_path, capsys):
    experiment, config = build(
        ["+experiment=judge_layers", "judge=local", f"judge.base_url={url}",
         f"judge.model={MODEL}", "judge.limits.concurrency=2", "layers=[3,4]",
         "judging.n_paths=6", "judging.random=6", "judging.identity=2", "judging.ceiling=3",
         "judging.swapped=0.5", "judging.repeated=0.5", "dataset.n_texts=20", "logger=none",
         f"cache={tmp_path / 'cache'}"]
    )  # fmt: skip
    results = run(experiment, config, tmp_path / "run")
    judgements = results.tables.rows("judgements")
    labels = Counter(str(row["label"]) for row in judgements)
    assert set(labels) <= set(LABELS)
    assert labels.total() == len(judgements)
    assert labels["UNASKED"] == 0
    assert any(labels[label] for label in SCORES), "a real answer was read"
    assert sum(row["role"] == "pair" for row in judgements) == 12
    (facts,) = results.provenance["judges"]
    assert facts["tokens_in"] > 0
    again = {row["compared"]: row for row in results.tables.rows("judge_agreement")}
    with capsys.disabled():
        print(f"\n{labels}")  # noqa: T201
        for row in results.tables.rows("judge_scores"):
            if row["source_layer"] is None:
                print(row["role"], row["arm"], row["judge_score"])  # noqa: T201
        for compared, row in again.items():
            print(compared, "agreement", row["agreement"], "kappa", row["kappa"])  # noqa: T201
