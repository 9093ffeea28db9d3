"""How much of this machine's memory a process may still take."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")


def available_host_bytes(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Bytes that this process may still allocate: what the machine has available, within its control groups' limits.

    Both versions of control groups are read, and the limits of every group above the process's own count as well.
    Page cache that a group can give back at once does not count as used.

    Args:
        proc: where procfs is mounted.
        groups: where the control groups are mounted.
    """
    return max(0, min([_available(proc / "meminfo"), *_left_in_groups(proc / "self" / "cgroup", groups)]))


def _available(meminfo: Path) -> int:
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # If the system does not say what is available, half of the installed memory is a safe guess.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _left_in_groups(membership: Path, groups: Path) -> Iterator[int]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield from _left(groups, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            files = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _left(groups / "memory", path, *files)


def _left(root: Path, path: str, limit_file: str, usage_file: str, cache: str) -> Iterator[int]:
    # In a container the path may be the host's, while the container's own group is mounted as the root: a group that
    # is not there is skipped.
    own = PurePosixPath(path.removeprefix("/"))
    for group in (own, *own.parents):
        directory = root / group
        try:
            limit = (directory / limit_file).read_text().strip()
            used = int((directory / usage_file).read_text())
            statistics = (directory / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):
            continue
        if limit != "max":
            fields = dict(line.split(maxsplit=1) for line in statistics if " " in line)
            yield int(limit) - used + int(fields.get(cache, 0))
