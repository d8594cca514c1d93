"""Docstrings and comments name their subject first: no sentence begins with Of, What, That or Those."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernels", "benchmarks", "model", "service", "loadtests")

FORBIDDEN = re.compile(r"(?:^|[.:;?!]\s+)(Of|What|That|Those)\b|^(?:of|what|that|those)\b")
"""The first word of a text in any case, and the first word of a later sentence."""

Text = tuple[int, str]
"""(line, a docstring or comment as one line)"""


def docstrings(source: str) -> Iterator[Text]:
    """Strings that stand alone: docstrings of modules, classes and functions, and those below a name."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, " ".join(text.split())


def comments(source: str) -> Iterator[Text]:
    """Comments; neighbouring lines in the same column are one comment."""
    begun, last = (0, ""), (0, 0)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            text = token.string.lstrip("#! ")
            if last == (line - 1, column):
                begun = begun[0], f"{begun[1]} {text}"
            else:
                yield begun
                begun = line, text
            last = line, column
    yield begun


def faults(source: str) -> list[Text]:
    return [text for text in (*docstrings(source), *comments(source)) if FORBIDDEN.search(text[1])]


def production_files() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("file", production_files())
def test_no_sentence_hides_its_subject(file: str) -> None:
    found = [f"{file}:{line}: {text[:80]}" for line, text in faults((ROOT / file).read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        '"""What it does."""',
        'def f():\n    """Adds. Of its numbers, none is lost."""',
        'x = 1\n"""of a row"""',
        "x = 1  # That many.",
        "# A limit. What lies\n# beyond it is lost.\n",
        "# A limit of rows:\n#\n# Those are few.\n",
    ],
)
def test_the_rule_sees(source: str) -> None:
    assert faults(source)


@pytest.mark.parametrize(
    "source",
    [
        '"""The number of rows.\n\n    In other words, what is counted."""',
        '"""The rows that\n    those of a table are, of what kind they may be."""',
        "# The limit\n# of rows.\n",
        'x = "What?"',
        "x = 1  # Offset.\ny = 2\n",
    ],
)
def test_the_rule_passes(source: str) -> None:
    assert not faults(source)


def tiles_without_shape(source: str) -> list[str]:
    """Variables of Triton kernels that are made of new tiles, where no comment at their first line gives a shape."""
    lines = source.splitlines()
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef) or "triton.jit" not in map(_name, function.decorator_list):
            continue
        known: set[str] = set()
        for node in sorted(
            (node for node in ast.walk(function) if isinstance(node, ast.Assign)), key=lambda node: node.lineno
        ):
            names = {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
            above = lines[node.lineno - 2].strip()
            said = "# " in "".join(lines[node.lineno - 1 : node.end_lineno]) or above.startswith(("# [", "# (["))
            if names - known and not said and any(map(_makes_tile, ast.walk(node.value))):
                found.append(f"{function.name}, line {node.lineno}: {lines[node.lineno - 1].strip()}")
            known |= names
    return found


def _name(decorator: ast.expr) -> str:
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)


def _makes_tile(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr="arange")):
            return True
        case ast.Call(func=ast.Attribute(attr="zeros" | "full"), args=[ast.List(elts=[_, *_]), *_]):
            return True
    return False


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "kernels/gpu").glob("*.py")))
def test_tiles_say_their_shape(file: str) -> None:
    found = tiles_without_shape((ROOT / "kernels/gpu" / file).read_text())
    assert not found, "\n".join(found)


def test_the_rule_sees_a_tile_without_shape() -> None:
    kernel = (
        "@triton.jit(debug=1)\ndef f(x, N: tl.constexpr):\n    n = 1\n    at = n + tl.arange(0, N){}\n    at = at + 1\n"
    )
    assert tiles_without_shape(kernel.format(""))
    assert not tiles_without_shape(kernel.format("  # [N]"))
