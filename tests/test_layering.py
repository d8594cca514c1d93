"""Who may import whom. What a rule forbids is looked for in the source, inside functions too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernels", "model", "service", "loadtests")

# The first rule whose prefix fits a module holds for it: which of our own modules it may import, and which
# libraries it may not.
RULES: list[tuple[str, set[str], set[str]]] = [
    # Measures whole models as well, beside transformers.
    ("kernels.bench", {"kernels", "model"}, {"fastapi", "zmq", "msgspec", "tokenizers"}),
    ("kernels", {"kernels"}, {"fastapi", "zmq", "msgspec", "tokenizers", "transformers"}),
    ("model.contract", set(), {"torch", "numpy", "msgspec"}),
    ("model.spec", set(), {"torch", "numpy", "msgspec"}),
    ("model.machine", set(), {"torch", "numpy", "msgspec"}),
    ("model.checkpoint", {"model.checkpoint"}, {"torch", "msgspec", "fastapi"}),
    ("model", {"model", "kernels"}, {"fastapi", "zmq", "msgspec", "pydantic", "tokenizers", "transformers"}),
    ("service.engine", {"service.engine", "model.contract"}, {"fastapi", "torch", "numpy"}),
    ("service.observability.logs", set(), {"fastapi", "torch", "zmq", "pydantic"}),
    (
        "service.text",
        {"service.text", "model.contract", "model.checkpoint"},
        {"fastapi", "torch", "zmq", "transformers"},
    ),
    (
        "service.api",
        {"service", "model.contract", "model.checkpoint.sampling_defaults"},
        {"torch", "zmq", "transformers"},
    ),
    ("service", {"service", "model.contract", "model.checkpoint"}, {"torch", "transformers"}),
    ("loadtests", {"loadtests"}, {"torch", "fastapi", "zmq"}),
]


def modules() -> dict[str, Path]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                found |= {name.name for name in names}
            case ast.ImportFrom(module=str(module), names=names):
                found |= {f"{module}.{name.name}" for name in names}
            case ast.ImportFrom(level=level) if level:
                raise AssertionError(f"{path}: imports here are absolute")
    return found


def within(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def violations(module: str, names: set[str]) -> list[str]:
    own, forbidden = next((own, forbidden) for prefix, own, forbidden in RULES if within(module, {prefix}))
    return [
        f"{module} imports {name}"
        for name in sorted(names)
        if (within(name, set(PACKAGES)) and not within(name, own)) or within(name, forbidden)
    ]


@pytest.mark.parametrize("module", sorted(modules()))
def test_module_imports_only_what_its_layer_may(module: str) -> None:
    assert violations(module, imports(modules()[module])) == []


def test_a_broken_rule_is_seen() -> None:
    assert violations("service.engine.scheduler", {"torch.nn"}) == ["service.engine.scheduler imports torch.nn"]
    assert violations("kernels.reference", {"model.spec.DecoderSpec"})
    assert violations("model.runner", {"service.engine.core.EngineCore"})


def test_only_one_module_of_the_server_asks_for_versions() -> None:
    """It knows what to say of a package that is not installed, which ours is not on a bare GPU image."""
    asking = {name for name, path in modules().items() if "importlib.metadata.version" in imports(path)}
    assert {name for name in asking if name.startswith("service.")} == {"service.versions"}


def test_package_inits_are_empty() -> None:
    assert [str(path) for path in modules().values() if path.name == "__init__.py" and path.read_text()] == []


@pytest.mark.parametrize("entry", ["service.cli", "service.processes.api_process"])
def test_the_http_side_never_loads_torch(entry: str) -> None:
    code = f"import {entry}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
