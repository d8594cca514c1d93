"""Conversations with tools, for models whose chat template knows of none: everything is said in plain messages.

Their calls are in the generic form, a JSON object with a name and arguments, or a list of such objects.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_INSTRUCTION = (
    'You can call functions. To call one, answer with nothing but a JSON object {"name": its name, "arguments": an '
    "object of its arguments}, or with a JSON list of such objects to call several. Otherwise answer as usual. "
    "The functions are:"
)

Turn = dict[str, Any]


def plain_conversation(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> list[Turn]:
    """The conversation with its tools in a system message, calls as text, and results as the user's messages."""
    turns: list[Turn] = []
    names: dict[str, str] = {}
    for message in messages:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls") or () if "id" in call}
        turn = _plain(message, names)
        if message["role"] == "tool" and turns and turns[-1].get("results"):
            turns[-1]["content"] += "\n" + turn["content"]
        else:
            turns.append(turn)
    for turn in turns:
        turn.pop("results", None)
    return list(_instructed(turns, tools)) if tools else turns


def _plain(message: Mapping[str, Any], names: Mapping[str, str]) -> Turn:
    calls = message.get("tool_calls")
    if calls:
        objects = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
        text = objects[0] if len(objects) == 1 else f"[{', '.join(objects)}]"
        content = f"{message['content']}\n{text}" if message.get("content") else text
        return {name: value for name, value in message.items() if name != "tool_calls"} | {"content": content}
    if message["role"] == "tool":
        name = message.get("name") or names.get(message.get("tool_call_id", ""))
        return {
            "role": "user",
            "content": f"Result{f' of {name}' if name else ''}: {message['content']}",
            "results": True,
        }
    return dict(message)


def _instructed(turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> Iterator[Turn]:
    functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = f"{_INSTRUCTION}\n{functions}"
    if turns and turns[0]["role"] == "system":
        yield {**turns[0], "content": f"{turns[0]['content']}\n\n{text}"}
        yield from turns[1:]
    else:
        yield {"role": "system", "content": text}
        yield from turns
