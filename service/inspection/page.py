"""The inside of the model as one HTML file, which needs no server and asks for nothing.

It is made of the parts of the server's page, which are joined here: browsers load no modules from a file.
"""

import base64
import hashlib
import html
import json
import re
from importlib.resources import files
from pathlib import Path

from service.api.schemas.inspection import Inspection

_FOLDER = Path(str(files("service"))) / "page"
_ENTRY = "inspection.js"
_IMPORT = re.compile(r'^import (?:(?P<whole>\w+)|\{ (?P<names>[\w, ]+) \}) from "(?P<path>[^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|class|const|let) (\w+))", re.MULTILINE)
_DEFAULT = re.compile(r"^export default ", re.MULTILINE)

_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="content-security-policy" content="{policy}">
<title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<noscript>This page needs JavaScript.</noscript>
<script type="application/json" id="answer">{answer}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def page_of(answer: Inspection) -> str:
    """The document that shows an answer."""
    style, script = (_FOLDER / "style.css").read_text("utf-8"), _joined(_ENTRY)
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    title = html.escape(f"{answer.model} · Headlight")
    return _DOCUMENT.format(policy=policy, title=title, style=style, answer=_data(answer), script=script)


def _data(answer: Inspection) -> str:
    """The answer as JSON inside of HTML, its numbers to the six digits that anybody reads."""
    short = json.loads(answer.model_dump_json(exclude_none=True), parse_float=lambda text: float(f"{float(text):.6g}"))
    # No tag is ended or begun by a token's text.
    return json.dumps(short, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _source(text: str) -> str:
    """The source of an inline script or style, as a policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _joined(entry: str) -> str:
    """A module and all that it imports, as one script: each is a function that returns what it exports."""
    parts: dict[str, str] = {}
    _add(entry, parts)
    return "\nconst modules = {};\n" + "".join(
        f"modules[{json.dumps(name)}] = (() => {{\n{text}}})();\n" for name, text in parts.items()
    )


def _add(name: str, parts: dict[str, str]) -> None:
    """Add a module to those it may import from, behind its own imports."""
    path = _FOLDER / name
    text = path.read_text("utf-8")
    for match in _IMPORT.finditer(text):
        found = _place(path, match["path"])
        if found not in parts:
            _add(found, parts)

    def imported(match: re.Match[str]) -> str:
        names = match["names"] or f"default: {match['whole']}"
        return f"const {{ {names} }} = modules[{json.dumps(_place(path, match['path']))}];\n"

    exports = _EXPORT.findall(text)
    body, defaults = _DEFAULT.subn("const whole = ", _EXPORT.sub("", _IMPORT.sub(imported, text)))
    parts[name] = f"{body}return {{ {', '.join([*exports, *['default: whole'] * defaults])} }};\n"


def _place(importer: Path, path: str) -> str:
    """A module's path below the folder, as another one names it."""
    return (importer.parent / path).resolve().relative_to(_FOLDER.resolve()).as_posix()
