"""Vocabularies for grammars, and schemas of growing nesting."""

import random
from collections.abc import Sequence
from typing import Any


class WordVocabulary:
    """Its tokens are a few words, and the last ones end a completion."""

    def __init__(self, words: Sequence[bytes], ends: int = 1) -> None:
        self._words = [*words, *([b"</s>"] * ends)]
        self.vocab_size = len(self._words)
        self.eos_token_ids = range(len(words), len(self._words))

    def token_bytes(self, token: int) -> bytes:
        return self._words[token] if token < len(self._words) else b""

    def is_special(self, token: int) -> bool:
        return token in self.eos_token_ids

    def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool) -> list[int]:
        return []

    def text(self, tokens: Sequence[int]) -> str:
        return b"".join(self._words[token] for token in tokens if not self.is_special(token)).decode()


PIECES = '{" ": ": " ", " "} ], [] {} "} }} ]] true false null 0. 12 -1 ab hello é 한 "a "b'.split(" ")
JSON_WORDS = WordVocabulary(
    [*(bytes([byte]) for byte in range(256)), *(piece.encode() for piece in PIECES if len(piece) > 1), b"\n  "], ends=2
)


def schema(depth: int, rng: random.Random) -> Any:
    """A schema with so many levels of arrays and objects; it may refer to the definitions of `closed`."""
    if depth == 0:
        return rng.choice(
            [
                {"enum": ["red", 'gre"en', 7, None, 1.5]},
                {"const": {"a": [1, "é"]}},
                {"type": "boolean"},
                {"type": ["null", "boolean"]},
                {"type": "integer", "minimum": -7, "maximum": 130},
                {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3},
                {"type": "number", "minimum": -1.25, "maximum": 2.5},
                {"type": "string", "pattern": "^[A-Z][a-z]{1,5}(-[0-9]{2})?$"},
                {"type": "string", "minLength": 2, "maxLength": 4},
                {"type": "string", "format": "date"},
                {"$ref": "#/$defs/colour"},
                {"$ref": "#/$defs/tree"},
            ]
        )
    inner = [schema(rng.randrange(depth), rng) for _ in range(rng.randint(0, 2))] + [schema(depth - 1, rng)]
    match rng.randrange(4):
        case 0:
            return {"type": "array", "items": inner[-1], "minItems": rng.randint(0, 2), "maxItems": 3}
        case 1:
            return {"type": "array", "prefixItems": inner, "items": False, "minItems": len(inner)}
        case 2:
            return {"anyOf": inner}
        case _:
            names = [f"p{index}" for index in range(len(inner))]
            return {
                "type": "object",
                "properties": dict(zip(names, inner, strict=True)),
                "required": names[: rng.randint(0, len(names))],
                "additionalProperties": False,
            }


def closed(schema: Any) -> Any:
    """A schema with its definitions, one of which refers to itself."""
    leaf = {"type": "integer", "minimum": 0, "maximum": 9}
    branch = {
        "type": "object",
        "properties": {"left": {"$ref": "#/$defs/tree"}, "value": leaf},
        "required": ["value"],
        "additionalProperties": False,
    }
    return {"$defs": {"colour": {"enum": ["red", "blue"]}, "tree": {"anyOf": [leaf, branch]}}, "allOf": [schema]}


def schemas(count: int) -> list[Any]:
    """The same at every call; the last are the deepest."""
    rng = random.Random(0)
    return [closed(schema(6 * index // count, rng)) for index in range(count)]
