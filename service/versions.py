"""Versions of installed packages, for whoever asks what runs here."""

from importlib.metadata import PackageNotFoundError, version

NOT_INSTALLED = "unknown"


def version_of(package: str) -> str:
    """A package's version; `NOT_INSTALLED` for one that runs from a source tree without having been installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED
