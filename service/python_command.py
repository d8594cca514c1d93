"""The command that runs a module of this project in another process."""

import sys


def python_command(module: str, *arguments: str | bytes) -> list[str | bytes]:
    """Command line of a module with its arguments. Packages of the working folder do not stand for the project's."""
    return [sys.executable, "-P", "-m", module, *arguments]
