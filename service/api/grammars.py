"""The grammar that a request asks for, from the fields of OpenAI and of vLLM. Knows nothing of what a grammar means."""

import json
from collections.abc import Iterator

from service.api.errors import refusal
from service.api.schemas.generation import GenerationBody
from service.api.schemas.grammars import ResponseFormat, StructuredOutputs
from service.engine.messages import Grammar

_ANY_OBJECT = '{"type":"object"}'


def grammar_of(body: GenerationBody, most: int) -> Grammar | None:
    """The grammar of a completion, of at most `most` characters; None if none is asked for. Raises ApiError."""
    found = [*_of_response_format(body.response_format), *_of_structured_outputs(body.structured_outputs)]
    if not found:
        return None
    grammar, *more = found
    if more:
        raise refusal(more[0].field, f"cannot be given together with {grammar.field}")
    check_grammar(grammar, body, most)
    return grammar


def check_grammar(grammar: Grammar, body: GenerationBody, most: int) -> None:
    """Refuse a grammar of more than `most` characters, and fields that contradict it. Raises ApiError."""
    for name in ("ignore_eos", "min_tokens"):
        if getattr(body, name):
            raise refusal(name, f"cannot be given together with {grammar.field}, which says where the completion ends")
    if len(grammar.source) > most:
        problem = f"{len(grammar.source)} characters are more than the {most} that this server allows"
        raise refusal(grammar.field, problem)


def _of_response_format(given: ResponseFormat | None) -> Iterator[Grammar]:
    if given is None:
        return
    if (given.type == "json_schema") != (given.json_schema is not None):
        raise refusal("response_format.json_schema", "goes with the type json_schema, which needs it")
    if given.type == "json_object":
        yield Grammar("json_schema", _ANY_OBJECT, "response_format")
    if given.json_schema is not None:
        schema = True if given.json_schema.schema_ is None else given.json_schema.schema_
        yield Grammar("json_schema", _compact(schema), "response_format.json_schema.schema")


def _of_structured_outputs(given: StructuredOutputs | None) -> Iterator[Grammar]:
    if given is None:
        return
    found = [*_constraints(given)]
    if not found:
        raise refusal("structured_outputs", "needs one of json, json_object, regex, choice and grammar")
    yield from found


def _constraints(given: StructuredOutputs) -> Iterator[Grammar]:
    if given.json_ is not None:
        source = given.json_ if isinstance(given.json_, str) else _compact(given.json_)
        yield Grammar("json_schema", source, "structured_outputs.json")
    if given.json_object:
        yield Grammar("json_schema", _ANY_OBJECT, "structured_outputs.json_object")
    if given.regex is not None:
        yield Grammar("regex", given.regex, "structured_outputs.regex")
    if given.choice is not None:
        yield Grammar("choice", _compact(given.choice), "structured_outputs.choice")
    if given.grammar is not None:
        yield Grammar("grammar", given.grammar, "structured_outputs.grammar")


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
