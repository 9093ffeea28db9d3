"""How many of this machine's cores a process may use."""

import os
from math import ceil
from pathlib import Path, PurePosixPath

_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")


def available_cores(proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Cores that this process may run on, within the quotas of its control groups; at least 1.

    Args:
        proc: where procfs is mounted.
        groups: where the control groups are mounted.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([own, *_quotas(proc / "self" / "cgroup", groups)]))


def _quotas(membership: Path, groups: Path) -> list[int]:
    """The quota of each group, in whole cores, of both versions of control groups."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        own = PurePosixPath(path.removeprefix("/"))
        for group in (own, *own.parents):
            try:
                if number == "0":
                    quota, period = (groups / group / "cpu.max").read_text().split()
                elif "cpu" in controllers.split(","):
                    folder = groups / "cpu" / group
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                else:
                    break
            except (OSError, ValueError):
                continue
            if quota.strip() != "max" and int(quota) > 0:
                found.append(ceil(int(quota) / int(period)))
    return found
