"""OpenVINO GenAI as a peer of loadtests.compare. It has no server, so the closed loop runs in this process.

    python openvino_peer.py MODEL THREADS

Prints {} when it is ready. Then each line of standard input is a job, {"prompts": [...], "output_tokens": 64,
"concurrency": 8}, answered by a line {"seconds", "ttft_seconds": [...], "prompt_tokens": [...], "output_tokens": [...]}
with an entry for each prompt. Times are in seconds. This file runs under an interpreter of its own, so it imports
nothing of the project.
"""

import json
import os
import sys
import time
from collections import deque
from typing import Any, TextIO

import openvino_genai as genai  # type: ignore[import-not-found]

CACHE_GIB = 1


def load(model: str, threads: int) -> Any:
    """OpenVINO's continuous batching pipeline on the CPU. Its prefix cache is off by default."""
    scheduling = genai.SchedulerConfig()
    scheduling.cache_size = CACHE_GIB
    return genai.ContinuousBatchingPipeline(model, scheduling, "CPU", {"INFERENCE_NUM_THREADS": threads})


def closed_loop(pipeline: Any, prompts: list[str], output_tokens: int, concurrency: int) -> dict[str, Any]:
    """Complete all prompts, `concurrency` at once: whenever a completion ends, the next prompt is added."""
    greedy = genai.GenerationConfig(max_new_tokens=output_tokens, ignore_eos=True, do_sample=False)
    waiting = deque(enumerate(prompts))
    running: dict[int, tuple[Any, float]] = {}
    tokenizer = pipeline.get_tokenizer()
    ttft = [0.0] * len(prompts)
    asked = [0] * len(prompts)
    tokens = [0] * len(prompts)
    began = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < concurrency:
            index, prompt = waiting.popleft()
            sent = time.perf_counter()
            # As tokens, for a text may be put into the chat template.
            ids = tokenizer.encode(prompt).input_ids
            asked[index] = ids.shape[1]
            running[index] = pipeline.add_request(index, ids, greedy), sent
        pipeline.step()
        now = time.perf_counter()
        for index, (handle, sent) in list(running.items()):
            arrived = _read(handle)
            if arrived and not tokens[index]:
                ttft[index] = now - sent
            tokens[index] += arrived
            if handle.get_status() != genai.GenerationStatus.RUNNING:
                del running[index]
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "ttft_seconds": ttft, "prompt_tokens": asked, "output_tokens": tokens}


def _read(handle: Any) -> int:
    """The number of tokens that have come since the last call."""
    count = 0
    while handle.can_read():
        count += sum(len(output.generated_ids) for output in handle.read().values())
    return count


def main() -> None:
    """Answer jobs until standard input ends."""
    replies = _replies()
    pipeline = load(sys.argv[1], int(sys.argv[2]))
    print("{}", file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(closed_loop(pipeline, **json.loads(line))), file=replies, flush=True)


def _replies() -> TextIO:
    """Standard output, reserved for replies: from now on, anything that libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies


if __name__ == "__main__":
    main()
