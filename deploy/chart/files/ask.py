"""Asks the server at URL for what it serves and for a few tokens, as a client does; `helm test` runs it."""

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 120


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """The answer to a GET, or to a POST of a body, with the first key of the file KEYS_FILE. It exits without one."""
    url = os.environ["URL"] + path
    headers = {"Content-Type": "application/json"}
    if "KEYS_FILE" in os.environ:
        keys = [line.strip() for line in Path(os.environ["KEYS_FILE"]).read_text().splitlines()]
        headers["Authorization"] = "Bearer " + next(key for key in keys if key and not key.startswith("#"))
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=TIMEOUT_SECONDS) as answer:
            return json.load(answer)
    except (OSError, ValueError) as error:
        sys.exit(f"{url}: {error}")


if __name__ == "__main__":
    model = ask("/v1/models")["data"][0]["id"]
    answer = ask("/v1/completions", {"model": model, "prompt": "The capital of France is", "max_tokens": 4})
    print(f"{model}: {answer['choices'][0]['text']!r}")
