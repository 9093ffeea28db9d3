"""The installed version."""

from importlib.metadata import PackageNotFoundError, version


def overtone_version() -> str:
    """The distribution's version, or "unknown" if the code runs from a folder that was not installed."""
    try:
        return version("overtone")
    except PackageNotFoundError:
        return "unknown"
