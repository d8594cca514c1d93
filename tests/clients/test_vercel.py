"""Vercel's AI SDK, with its default provider, against a running server, through responses and through chats."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from question import ASKED, MODEL, Weather

SDK = Path(os.environ.get("HEADLIGHT_CLIENTS_NODE", "nowhere"))
"""A folder where `npm install` has put the SDK beside `ask.js`."""


@pytest.mark.skipif(not (SDK / "node_modules").is_dir() or shutil.which("node") is None, reason="there is no Node.js")
@pytest.mark.parametrize("api", ["responses", "chat"])
def test_the_default_provider(api: str) -> None:
    command = ["node", str(SDK / "ask.js"), api, MODEL, ASKED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["streamed"] == found["whole"] != ""
    Weather.model_validate(found["object"])
    (call,) = found["calls"]
    Weather.model_validate(call)
    assert found["steps"] == 2
    assert found["after"]
