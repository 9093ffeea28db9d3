"""A process's own memory, as Linux counts it. Imported by programs of other environments, so it needs nothing else."""

import re
from pathlib import Path


def resident_mb(field: str) -> float:
    """A memory field of /proc/self/status in MB (10⁶ bytes): VmRSS, or VmHWM for the most so far.

    VmHWM counts pages of memory-mapped files, too. (getrusage's ru_maxrss would not do: a child inherits its parent's.)
    """
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}: memory is measured on Linux only")
    return int(found[1]) * 1024 / 1e6
