"""Who may import whom. What a rule forbids is looked for in the source, inside functions too."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("benchmarks", "kernels", "model", "service", "loadtests")

CLIENT_SIDE = {"service.engine.interface", "service.engine.messages", "service.engine.status"}
"""What of the engine's package is for those who use an engine."""

REPORTED = {"model.array", "model.inspection", "model.sampling_params", "model.token_logprobs"}
"""Parts of the contract between serving and the model: settings, requests and numbers."""

CONTRACT = {"model.contract", "model.limits"} | REPORTED
"""Parts of the model's package that serving may know: the integers that cross between both, and its sizes."""

# The first rule whose prefix fits a module holds for it: which of our own modules it may import, and which
# libraries it may not.
RULES: list[tuple[str, set[str], set[str]]] = [
    ("benchmarks.api_host", {"benchmarks", "service"}, {"torch", "tokenizers"}),
    ("benchmarks.streams", set(), {"torch", "fastapi"}),
    ("benchmarks.host", {"benchmarks", "model", "service.engine"}, {"fastapi", "tokenizers"}),
    ("benchmarks", {"benchmarks", "kernels", "model"}, {"fastapi", "zmq", "msgspec", "tokenizers"}),
    ("kernels", {"kernels"}, {"fastapi", "zmq", "msgspec", "tokenizers", "transformers"}),
    ("model.contract", {"model.limits"} | REPORTED, {"torch", "numpy", "msgspec"}),
    ("model.limits", set(), {"torch", "numpy", "msgspec"}),
    ("model.inspection", REPORTED, {"torch", "numpy", "msgspec"}),
    ("model.array", set(), {"torch", "numpy", "msgspec"}),
    ("model.sampling_params", set(), {"torch", "numpy", "msgspec"}),
    ("model.token_logprobs", set(), {"torch", "numpy", "msgspec"}),
    ("model.runner_config", set(), {"torch", "numpy", "msgspec", "pydantic"}),
    ("model.spec", set(), {"torch", "numpy", "msgspec"}),
    ("model.loading.machine", set(), {"torch", "numpy", "msgspec"}),
    ("model.checkpoint", {"model.checkpoint"}, {"torch", "msgspec", "fastapi"}),
    ("model.families", {"model.families", "model.checkpoint", "model.spec"}, {"torch", "msgspec", "fastapi"}),
    ("model", {"model", "kernels"}, {"fastapi", "zmq", "msgspec", "pydantic", "tokenizers", "transformers"}),
    ("service.engine", {"service.engine", "service.python_command"} | CONTRACT, {"fastapi", "torch", "numpy"}),
    ("service.observability.logs", set(), {"fastapi", "torch", "zmq", "pydantic"}),
    (
        "service.text",
        {"service.text", "model.checkpoint"} | CONTRACT,
        {"fastapi", "torch", "zmq", "transformers"},
    ),
    ("service.generation", {"service.text"} | CONTRACT | CLIENT_SIDE, {"fastapi", "torch", "zmq"}),
    (
        "service.observability",
        {"service.observability", "service.generation", "service.versions"} | CONTRACT | CLIENT_SIDE,
        {"torch", "zmq", "transformers"},
    ),
    (
        "service.api",
        {
            *("service.api", "service.generation", "service.observability", "service.settings", "service.text"),
            *("service.versions", "model.checkpoint.sampling_defaults"),
        }
        | CONTRACT
        | CLIENT_SIDE,
        {"torch", "zmq", "transformers"},
    ),
    ("service", {"service", "model.runner_config", "model.checkpoint"} | CONTRACT, {"torch", "transformers"}),
    ("headlight", {"service.offline", "service.inspection.arrays"}, {"torch", "fastapi", "zmq"}),
    ("loadtests", {"loadtests"}, {"torch", "fastapi", "zmq"}),
]


def modules() -> dict[str, Path]:
    files = [ROOT / "headlight.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
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


def room(module: str) -> str:
    """The package a module is in; one that lies loose in a top-level package stands for itself."""
    parent = module.rpartition(".")[0]
    return parent if "." in parent else module


def circle(imported: Mapping[str, set[str]]) -> list[str]:
    """Modules or packages each of which imports the next, the last the first; empty if there are none."""
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def graph(of: Callable[[str], str]) -> dict[str, set[str]]:
    """What each part of the project imports of the others, parts being named by `of` a module."""
    known = modules()
    edges: dict[str, set[str]] = defaultdict(set)
    for module, path in known.items():
        named = {name if name in known else name.rpartition(".")[0] for name in imports(path)}
        edges[of(module)] |= {of(name) for name in named & known.keys()} - {of(module)}
    return edges


@pytest.mark.parametrize("of", [str, room], ids=["modules", "packages"])
def test_nothing_imports_in_a_circle(of: Callable[[str], str]) -> None:
    assert circle(graph(of)) == []


def test_a_circle_is_seen() -> None:
    """Between packages also where no two modules make one."""
    found = graph(room)
    found["service.engine"] = {"service.processes"}
    assert {"service.engine", "service.processes"} <= set(circle(found))


def test_only_one_module_of_the_server_asks_for_versions() -> None:
    """It knows what to say of a package that is not installed, which ours is not on a bare GPU image."""
    asking = {name for name, path in modules().items() if "importlib.metadata.version" in imports(path)}
    assert {name for name in asking if name.startswith("service.")} == {"service.versions"}


def test_package_inits_are_empty() -> None:
    assert [str(path) for path in modules().values() if path.name == "__init__.py" and path.read_text()] == []


ENGINE = {"torch", "service.engine.scheduler", "service.engine.blocks", "service.engine.core"}
TEXT = {"tokenizers", "jinja2", "service.text"}


@pytest.mark.parametrize(
    ("entry", "theirs"),
    [
        ("headlight", ENGINE),
        ("service.cli", ENGINE | TEXT | {"fastapi", "numpy"}),
        ("service.processes.supervisor_process", ENGINE | TEXT | {"fastapi", "numpy", "pydantic", "service.settings"}),
        ("service.processes.api_process", ENGINE),
        ("service.processes.engine_process", TEXT | {"fastapi", "pydantic"}),
    ],
)
def test_a_process_loads_nothing_that_only_others_need(entry: str, theirs: set[str]) -> None:
    """Each library takes megabytes and a part of the start in every process that loads it."""
    code = f"import {entry}, sys; sys.exit(not {theirs}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
