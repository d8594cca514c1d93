"""Prints the numbers of transformers in float32 for the task's choices, as JSON: a list for each text.

A list has an entry for each choice: the log-likelihood in nats, and whether every token is the likeliest in its place.
It needs the environment of `make test`, which has torch and the model.
"""

import json
import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.checkpoint.source import DEFAULT_MODEL, resolve

TASK = Path(__file__).with_name("choices.jsonl")


def main() -> None:
    """Print the numbers."""
    path = resolve(DEFAULT_MODEL, Path(os.environ.get("HEADLIGHT_HOME", "~/.cache/headlight")).expanduser()).path
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()

    def score(text: str, choice: str) -> tuple[float, bool]:
        known = len(tokenizer(text).input_ids)
        ids = torch.tensor(tokenizer(f"{text} {choice}").input_ids)
        logprobs = model(ids[None]).logits[0, known - 1 : -1].log_softmax(-1)
        chosen = logprobs.gather(1, ids[known:, None])
        return chosen.sum().item(), bool((logprobs.argmax(-1) == ids[known:]).all())

    documents = map(json.loads, TASK.read_text().splitlines())
    with torch.inference_mode():
        print(json.dumps([[score(doc["text"], choice) for choice in doc["choices"]] for doc in documents]))


if __name__ == "__main__":
    main()
