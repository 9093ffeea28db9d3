import os
from pathlib import Path

import pytest

from merge.bundle import available_cores


def machine(root: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(membership)
    for name, text in files.items():
        (root / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "groups" / name).write_text(text)
    return root / "proc", root / "groups"


@pytest.fixture(autouse=True)
def _eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("", {}, 8),
        ("0::/a/b", {"a/b/cpu.max": "max 100000\n"}, 8),
        ("0::/a/b", {"a/b/cpu.max": "250000 100000\n", "a/cpu.max": "400000 100000\n"}, 3),
        ("0::/a/b", {"a/cpu.max": "50000 100000\n"}, 1),
        ("0::/elsewhere", {"cpu.max": "200000 100000\n"}, 2),
        ("4:cpu,cpuacct:/c", {"cpu/c/cpu.cfs_quota_us": "300000\n", "cpu/c/cpu.cfs_period_us": "100000\n"}, 3),
        ("4:cpu:/c", {"cpu/c/cpu.cfs_quota_us": "-1\n", "cpu/c/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_quotas_count(tmp_path: Path, membership: str, files: dict[str, str], cores: int) -> None:
    assert available_cores(*machine(tmp_path, membership, files)) == cores


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cores(tmp_path / "none", tmp_path / "none") == 8
