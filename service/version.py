"""The server's own version."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """The version that was installed; "unknown" for a source tree that was not."""
    try:
        return version("headlight")
    except PackageNotFoundError:
        return "unknown"
