"""lm-evaluation-harness scores a multiple-choice task by the server, and gets transformers' numbers.

The server's weights and activations have to be transformers': `headlight serve --backend reference --dtype float32`.
"""

import json
import os
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from question import MODEL, URL

EXPECTED = Path(os.environ["HEADLIGHT_CLIENTS_EXPECTED"])
TASK = Path(__file__).parent


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "text"])
def test_a_multiple_choice_task_gets_transformers_numbers(ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TASK)
    server = {"model": MODEL, "base_url": f"{URL}/v1/completions", "num_concurrent": 4}
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=server | {"tokenized_requests": ids},
        batch_size=3,
        tasks=["choices"],
        task_manager=TaskManager(include_path=str(TASK), include_defaults=False),
        bootstrap_iters=0,
    )
    assert found
    samples = sorted(found["samples"]["choices"], key=lambda sample: sample["doc_id"])
    expected = json.loads(EXPECTED.read_text())
    right = []
    for sample, scores in zip(samples, expected, strict=True):
        scored = [response[0] for response in sample["resps"]]
        sums = [logprob for logprob, _ in scores]
        assert [float(logprob) for logprob, _ in scored] == pytest.approx(sums, abs=5e-4), sample["doc"]
        assert [bool(greedy) for _, greedy in scored] == [greedy for _, greedy in scores], sample["doc"]
        best = sums.index(max(sums))
        assert max(range(len(scored)), key=lambda index: float(scored[index][0])) == best, sample["doc"]
        right.append(best == sample["doc"]["answer"])
    assert found["results"]["choices"]["acc,none"] == pytest.approx(sum(right) / len(right))
