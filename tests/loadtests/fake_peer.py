"""A peer without HTTP for tests: answers jobs on standard input at once, by options in the environment.

FAKE_PEER_SHORT: leave out a token of each answer. FAKE_PEER_DIES: end when a job comes.
"""

import json
import os
import sys

print("{}", flush=True)
for line in sys.stdin:
    if os.environ.get("FAKE_PEER_DIES"):
        sys.exit("out of ideas")
    job = json.loads(line)
    count = len(job["prompts"])
    tokens = job["output_tokens"] - bool(os.environ.get("FAKE_PEER_SHORT"))
    reply = {
        "seconds": count * tokens / 100,
        "ttft_seconds": [0.05] * count,
        "prompt_tokens": [len(prompt.split()) for prompt in job["prompts"]],
        "output_tokens": [tokens] * count,
    }
    print(json.dumps(reply), flush=True)
