from pathlib import Path

import pytest

from merge.bundle import available_host_bytes

MIB = 1 << 20


def machine(root: Path, available: int, membership: str) -> tuple[Path, Path]:
    """A procfs with so much available memory (bytes) and this /proc/self/cgroup, and an empty cgroup mount."""
    proc, groups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:  {available // 1024} kB\n")
    (proc / "self" / "cgroup").write_text(membership)
    return proc, groups


def group_v1(directory: Path, limit: int, used: int, cache: int = 0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (directory / "memory.usage_in_bytes").write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"cache 5\ninactive_file 0\ntotal_inactive_file {cache}\n")


def group_v2(directory: Path, limit: int | str, used: int, cache: int = 0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.max").write_text(f"{limit}\n")
    (directory / "memory.current").write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")


def test_without_groups_it_is_what_the_machine_has_available(tmp_path: Path) -> None:
    assert available_host_bytes(*machine(tmp_path, 700 * MIB, "")) == 700 * MIB
    proc, groups = machine(tmp_path / "unlimited", 700 * MIB, "0::/a\n4:memory:/a\n")
    group_v2(groups / "a", "max", 10 * MIB)
    group_v1(groups / "memory" / "a", 9223372036854771712, 10 * MIB)
    assert available_host_bytes(proc, groups) == 700 * MIB


@pytest.mark.parametrize("membership", ["0::/service\n", "9:name=systemd:/x\n0::/service/\n"])
def test_the_limit_of_a_v2_group(tmp_path: Path, membership: str) -> None:
    proc, groups = machine(tmp_path, 10_000 * MIB, membership)
    group_v2(groups / "service", 600 * MIB, 200 * MIB)
    assert available_host_bytes(proc, groups) == 400 * MIB


@pytest.mark.parametrize("membership", ["4:memory:/box\n0::/\n", "11:cpu,memory:/box\n"])
def test_the_limit_of_a_v1_group(tmp_path: Path, membership: str) -> None:
    proc, groups = machine(tmp_path, 10_000 * MIB, membership)
    group_v1(groups / "memory" / "box", 600 * MIB, 200 * MIB)
    assert available_host_bytes(proc, groups) == 400 * MIB


def test_limits_of_the_groups_above_count(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, 10_000 * MIB, "0::/slice/inner\n4:memory:/outer/inner\n")
    group_v2(groups / "slice" / "inner", "max", 10 * MIB)
    group_v2(groups / "slice", 900 * MIB, 100 * MIB)
    group_v1(groups / "memory" / "outer" / "inner", 9223372036854771712, 0)
    assert available_host_bytes(proc, groups) == 800 * MIB
    group_v1(groups / "memory" / "outer", 500 * MIB, 100 * MIB)
    assert available_host_bytes(proc, groups) == 400 * MIB


def test_a_containers_own_group_is_the_root_of_what_it_sees(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, 10_000 * MIB, "4:memory:/docker/0123\n")
    group_v1(groups / "memory", 600 * MIB, 100 * MIB)
    assert available_host_bytes(proc, groups) == 500 * MIB


@pytest.mark.parametrize("make", [group_v1, group_v2])
def test_page_cache_that_can_be_given_back_is_not_used(tmp_path: Path, make) -> None:
    proc, groups = machine(tmp_path, 10_000 * MIB, "0::/\n4:memory:/\n")
    make(groups / "memory" if make is group_v1 else groups, 600 * MIB, 500 * MIB, cache=300 * MIB)
    assert available_host_bytes(proc, groups) == 400 * MIB


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, 10_000 * MIB, "0::/\n")
    group_v2(groups, 600 * MIB, 601 * MIB)
    assert available_host_bytes(proc, groups) == 0
