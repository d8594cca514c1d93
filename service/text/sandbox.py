"""Runs untrusted Jinja templates: sandboxed, and bounded in time and size.

The clock is read in every turn of a loop, every call and every operator, and every value that a template builds is
measured, so that endless loops, runaway recursion and doubling strings end. One hole remains: a single built-in asked
for one huge value is refused only after it has made it. Knows nothing of chats.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from time import thread_time
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_SECONDS = 2.0
"""Processor seconds of one rendering; real templates take milliseconds."""
MOST_CHARACTERS = 8 << 20
"""Characters of a template, of its output, and of any value on the way; entries, for lists and mappings."""
_MOST_BITS = 256
_LARGEST_EXPONENT = 64
_LONGEST_REASON = 200

_COUNTED, _MEASURED = "headlight counted", "headlight measured"
"""Names of filters for our own use; no template can write them, because they hold a space."""


class TemplateError(ValueError):
    """A template cannot be read, or not rendered with these values; the message is one line that says why."""


class SandboxedTemplate:
    """A compiled template. Threads may render it at the same time."""

    def __init__(self, source: str) -> None:
        """Compile `source`. Raises TemplateError if it is no template, or too long."""
        if len(source) > MOST_CHARACTERS:
            raise TemplateError(f"the template has {len(source)} characters; the limit is {MOST_CHARACTERS}")
        environment = _Environment(_Meter())
        try:
            parsed = environment.parse(source)
            self.names = frozenset(name.name for name in parsed.find_all(nodes.Name))
            """Names of the template's variables, including those that it sets itself."""
            self._code = environment.compile(_Instrument().visit(parsed))
        except Exception as error:  # Parsing hostile text ends in anything up to a RecursionError.
            raise TemplateError(_one_line(error)) from None

    def render(self, variables: Mapping[str, object]) -> str:
        """The template's text with these variables. Raises TemplateError, also for errors that the template raises."""
        meter = _Meter()
        environment = _Environment(meter)
        template = Template.from_code(environment, self._code, environment.make_globals(None))
        pieces = []
        try:
            for piece in template.generate(variables):
                meter.add_output(piece)
                pieces.append(piece)
        except Exception as error:  # A template can make Python raise anything.
            raise TemplateError(_one_line(error)) from None
        return "".join(pieces)


class _Meter:
    """Time and output that one rendering has used."""

    def __init__(self) -> None:
        self._end = thread_time() + MOST_SECONDS
        self._output = 0

    def tick(self) -> None:
        if thread_time() > self._end:
            raise TemplateRuntimeError(f"the template ran for more than {MOST_SECONDS:g} seconds")

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.tick()
            yield value

    def measured(self, value: Any) -> Any:
        size = len(value) if isinstance(value, str | list | tuple | dict) else 0
        if size > MOST_CHARACTERS or (isinstance(value, int) and value.bit_length() > _MOST_BITS):
            raise TemplateRuntimeError("the template builds a value that is too large")
        return value

    def add_output(self, piece: str) -> None:
        self.tick()
        self._output += len(piece)
        if self._output > MOST_CHARACTERS:
            raise TemplateRuntimeError(f"the template writes more than {MOST_CHARACTERS} characters")


class _Environment(ImmutableSandboxedEnvironment):
    """The environment that chat templates are written for, as transformers made it; one for each rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, meter: _Meter) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _GenerationTag])
        self._meter = meter
        self.filters |= {"tojson": _to_json, _COUNTED: meter.counted, _MEASURED: meter.measured}
        del self.filters["center"], self.globals["lipsum"]  # Their purpose is to make long text out of a number.
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self._meter.tick()
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and value > MOST_CHARACTERS:
                raise TemplateRuntimeError("the template calls a function with a number that is too large")
        return __self._meter.measured(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._meter.tick()
        if operator == "**" and not abs(right) <= _LARGEST_EXPONENT:
            raise TemplateRuntimeError("the template uses an exponent that is too large")
        if operator == "*":
            _check_repetition(left, right)
            _check_repetition(right, left)
        return self._meter.measured(super().call_binop(context, operator, left, right))


class _GenerationTag(Extension):
    """The tag {% generation %}, which marks a model's text for training; here it stands for its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Instrument(NodeTransformer):
    """Counts the turns of every loop, and measures the values that no hook of the environment sees."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filter(node.iter, _COUNTED)
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.AssignBlock:
        self.generic_visit(node)
        node.filter = _filter(node.filter, _MEASURED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(node, _MEASURED)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(node, _MEASURED)


def _filter(node: nodes.Node | None, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


def _check_repetition(value: Any, times: Any) -> None:
    if isinstance(value, str | list | tuple) and isinstance(times, int) and len(value) * times > MOST_CHARACTERS:
        raise TemplateRuntimeError("the template builds a value that is too large")


def _raise_exception(message: str) -> None:
    raise TemplateRuntimeError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter, because prompts are not HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
