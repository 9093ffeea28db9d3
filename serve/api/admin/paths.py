"""The files that an administrator may name: those in the configured directories, after links are resolved."""

from collections.abc import Sequence
from pathlib import Path

from serve.api.errors import forbidden, invalid, shortened


def check_directories(directories: Sequence[Path]) -> None:
    """Return if all of them are directories.

    Raises:
        ValueError: one is not.
    """
    for directory in directories:
        if not directory.is_dir():
            raise ValueError(f"--expert-dir {directory} is not a directory")


def path_within(field: str, path: str, directories: Sequence[Path]) -> Path:
    """The real path of something in one of the directories; a relative path is looked up in each of them.

    Raises:
        ApiError: 403 if no directory is configured; 400 if the path is outside of them or does not exist.
    """
    if not directories:
        raise forbidden("experts cannot be loaded here: the server was started without --expert-dir", "no_expert_dir")
    inside = False
    for directory in directories:
        try:
            root = directory.resolve(strict=True)
            real = (root / path).resolve()
            if real.is_relative_to(root):
                inside = True
                if real.exists():
                    return real
        except (OSError, RuntimeError, ValueError):  # a loop of links, a name too long: nothing that could be served
            continue
    if not inside:
        raise invalid(field, f"{shortened(path)!r} is not in one of the configured directories", "path_not_allowed")
    raise invalid(field, f"there is no {shortened(path)!r} in the configured directories", "not_found")


def still_within(path: Path, directories: Sequence[Path]) -> Path:
    """The real path of a file that was loaded from one of the directories; other paths, a bundle's own, are unchanged.

    Raises:
        ApiError: 400 if the file was replaced by a link that leads elsewhere.
    """
    try:
        roots = [directory.resolve(strict=True) for directory in directories]
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise invalid("name", "the expert's file cannot be found any more", "not_found") from error
    if not any(path.is_relative_to(root) for root in roots):
        return path
    if not any(real.is_relative_to(root) for root in roots):
        raise invalid("name", "the expert's file now leads out of the configured directories", "path_not_allowed")
    return real
