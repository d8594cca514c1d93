"""What the README says of settings is what the settings are, and what it shows of Python is what Python says."""

import doctest
import re
from pathlib import Path

from service.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def rows() -> list[tuple[list[str], str]]:
    table = README.split("| setting | default | what it is |")[1].split("\n\n")[0]
    cells = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`(\w+)`", names), default.replace("`", "").strip()) for names, default in cells]


def test_every_setting_exists_with_the_default_it_is_said_to_have() -> None:
    assert len(rows()) > 5
    for names, said in rows():
        defaults = [Settings.model_fields[name].default for name in names]
        if None not in defaults:
            told = [float(part) if part.isdigit() else part for part in said.split(", ")]
            assert told == [as_said(default) for default in defaults], names


def test_an_afternoon_is_as_long_as_it_is_said_to_be_and_its_answers_are_in_its_files() -> None:
    path = README.split("### An afternoon's path")[1].split("\n## ")[0]
    (said,) = re.findall(r"about ([\d,]+) lines", path)
    table, answers = path.split("Whoever has read them")
    files = [(ROOT / name).read_text() for name in re.findall(r"`([\w/]+\.py)`", table)]
    lines = sum(len(text.splitlines()) for text in files)
    assert abs(lines - int(said.replace(",", ""))) <= 100
    for name in re.findall(r"`([\w./]+)`", answers):
        if not name.endswith(".py"):
            assert (
                any(re.search(rf"\b(def|class) {name.rpartition('.')[2]}\b", text) for text in files) or name == "stop"
            )


def test_the_session_in_python_says_what_it_is_said_to(smollm2: Path) -> None:
    """With the real model, in its default place."""
    (session,) = re.findall(r"```pycon\n(.*?)```", README, re.DOTALL)
    example = doctest.DocTestParser().get_doctest(session, {}, "README", "README.md", 0)
    assert len(example.examples) > 5
    said: list[str] = []
    assert doctest.DocTestRunner().run(example, out=said.append).failed == 0, "".join(said)


def as_said(default: object) -> float | str:
    match default:
        case bool():
            return str(default).lower()
        case int() | float():
            return float(default)
        case _:
            return str(default)
