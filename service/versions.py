"""Versions of installed packages."""

from importlib.metadata import PackageNotFoundError, version

NOT_INSTALLED = "unknown"


def version_of(package: str) -> str:
    """The version of an installed package; `NOT_INSTALLED` for one that runs from a source tree."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED
