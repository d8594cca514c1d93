"""Triton's interpreter without what it does again and again, which takes it most of the time of small kernels.

A launch replaces the functions of Triton's language by interpreted ones. Each call of a function that a kernel is made
of does so again, and finds all of them replaced. `python -m tests.interpreter MODULE ARGUMENTS` runs a module without
that.

Triton reads TRITON_INTERPRET when this module imports it.
"""

import runpy
import sys
from collections.abc import Callable
from typing import Any

from triton import language
from triton.runtime import interpreter

LANGUAGES = {id(language), id(language.core)}
"""The modules whose functions are replaced where the kernel's module has imported them."""


def replace_once_a_launch() -> None:
    """Have the functions of a language replaced once a launch."""
    replace, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    replaced: set[int] = set()

    def replace_others(function: Callable[..., Any]) -> Any:
        imported = LANGUAGES.intersection(map(id, function.__globals__.values()))
        if imported and imported <= replaced:
            return None
        replaced.update(imported)
        return replace(function)

    def launch_anew(self: Any, *arguments: Any, **constants: Any) -> None:
        replaced.clear()
        launch(self, *arguments, **constants)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = replace_others, launch_anew


if __name__ == "__main__":
    replace_once_a_launch()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
