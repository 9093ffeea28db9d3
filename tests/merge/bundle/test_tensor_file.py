import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.bundle import (
    BundleError,
    MissingFileError,
    UnreadableFileError,
    open_bundle,
    read_layout,
    tensor_file,
    write_expert,
)
from merge.bundle.router_files import load_router
from merge.bundle.tensor_file import read_tensor_file
from tests.merge.bundle.test_expert import make_expert
from tests.users import another_user, open_to_all


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.int8)}, path, metadata={"k": "v"})
    return path


def test_digest_metadata_and_tensors_are_those_of_the_file(file: Path) -> None:
    read = read_tensor_file(file)
    assert read.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert read.metadata == {"k": "v"}
    assert read.tensors.keys() == {"a", "b"}
    for name, tensor in load_file(file).items():
        assert torch.equal(read.tensors[name], tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "it has .* bytes and its header describes"),
        (lambda data: data + b"\0", "it has .* bytes and its header describes"),
        (lambda data: b"", "its header would take 0 of 0 bytes"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (lambda data: data.replace(b'"dtype"', b'"dtyqe"'), "not a readable safetensors file"),
        (lambda data: data[:8] + b"]" + data[9:], "its header is invalid"),
        (lambda data: data.replace(b"[0,24]", b"[0,23]"), "not a readable safetensors file"),
    ],
)
def test_damaged_files_are_refused_with_their_name(file: Path, change: Any, message: str) -> None:
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(BundleError, match=message) as raised:
        read_tensor_file(file)
    assert str(file) in str(raised.value)


def test_what_is_not_a_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableFileError, match="is not a regular file"):
        read_tensor_file(tmp_path / "pipe")
    with pytest.raises(UnreadableFileError, match="IsADirectoryError"):
        read_tensor_file(tmp_path)
    with pytest.raises(MissingFileError, match="no file at"):
        read_tensor_file(tmp_path / "none")


def test_a_file_that_changes_while_it_is_read_is_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a rewrite of equal length, which leaves the header valid, may be served in two halves."""
    read, times = tensor_file._read, 0
    data = bytearray(file.read_bytes())

    def overwritten(*arguments: Any) -> bytes:
        nonlocal times
        times += 1
        found = read(*arguments)
        if times == 1:
            data[-1] = 7
            with file.open("r+b") as out:
                out.write(data)
        return found

    monkeypatch.setattr(tensor_file, "_read", overwritten)
    assert read_tensor_file(file).digest == hashlib.sha256(data).hexdigest()
    assert times == 2


def test_a_file_that_never_rests_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = tensor_file._read

    def overwritten(*arguments: Any) -> bytes:
        found = read(*arguments)
        os.utime(file)
        return found

    monkeypatch.setattr(tensor_file, "_read", overwritten)
    with pytest.raises(UnreadableFileError, match="is being written to: write a copy and rename it"):
        read_tensor_file(file)


_OVERWRITING = """
import sys, threading, time
from pathlib import Path
from merge.bundle import BundleError, expert_digest
from merge.bundle.expert import read_expert_content

target, contents = Path(sys.argv[1]), [Path(name).read_bytes() for name in sys.argv[2:]]
digests = {expert_digest(Path(name)): float(read_expert_content(Path(name))[1].density) for name in sys.argv[2:]}
over = threading.Event()

def overwrite():
    while not over.is_set():
        for content in contents:
            with target.open("wb", buffering=0) as file:  # as cp does: truncated first, then written in parts
                for start in range(0, len(content), 65536):
                    file.write(content[start : start + 65536])
            time.sleep(0.002)

writer = threading.Thread(target=overwrite)
writer.start()
read, refused, deadline = 0, 0, time.monotonic() + 1
while time.monotonic() < deadline:
    try:
        digest, expert = read_expert_content(target)
    except BundleError as error:
        assert str(target) in str(error), error
        refused += 1
    else:
        assert digests[digest] == float(expert.density) == float(expert.dense["norm.weight"].mean())
        read += 1
over.set()
writer.join()
digest, expert = read_expert_content(target)
assert digests[digest] == float(expert.density)
print(read + refused)
"""


def test_overwriting_an_expert_in_place_never_ends_the_reader(tmp_path: Path) -> None:
    """In a separate process: with mapped files SIGBUS ended it."""
    names = []
    for seed, density in ((1, 0.25), (2, 0.5)):
        dense = {"norm.weight": torch.full((40_000,), density)}
        names.append(str(tmp_path / f"{seed}.safetensors"))
        write_expert(Path(names[-1]), replace(make_expert(seed=seed), density=density, dense=dense))
    target = tmp_path / "target.safetensors"
    target.write_bytes(Path(names[0]).read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", _OVERWRITING, str(target), *names],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 0


def test_a_lack_of_permission_is_called_that(tmp_path: Path) -> None:
    """safetensors says "No such file" of a file that may not be read."""
    save_file({"a": torch.zeros(1)}, tmp_path / "router.safetensors")
    (tmp_path / "router.json").write_text('{"format_version": 1}')
    (tmp_path / "bundle.json").write_text("{}")
    for name in ("router.safetensors", "bundle.json"):
        (tmp_path / name).chmod(0)
    open_to_all(tmp_path)
    with another_user():
        for reader, path in (
            (read_tensor_file, tmp_path / "router.safetensors"),
            (read_layout, tmp_path / "router.safetensors"),
            (load_router, tmp_path),
            (open_bundle, tmp_path),
        ):
            with pytest.raises(UnreadableFileError, match="PermissionError: Permission denied .*user id") as raised:
                reader(path)
            assert "No such file" not in str(raised.value)
