"""The installed version."""

from importlib.metadata import PackageNotFoundError, version


def overtone_version() -> str:
    """The distribution's version, "unknown" where the code runs from a folder that was never installed."""
    try:
        return version("overtone")
    except PackageNotFoundError:
        return "unknown"
