import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge.checkpoint import CheckpointError, read_header


def write(path: Path, header: object, data: bytes) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_the_reference_library_wrote(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(5, dtype=torch.bfloat16), "none": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert {name: (info.dtype, info.shape, info.nbytes) for name, info in header.items()} == {
        "a": (torch.float32, (2, 3), 24),
        "b": (torch.bfloat16, (5,), 10),
        "none": (torch.float32, (0, 4), 0),
    }


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(0, 8, [2])}, b"\0" * 7, "describes"),
        ({"a": entry(0, 8, [2])}, b"\0" * 9, "describes"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"\0" * 12, "b starts at byte 4 and overlaps"),
        ({"a": entry(4, 12, [2])}, b"\0" * 12, "leaves a hole"),
        ({"a": entry(0, 8, [3])}, b"\0" * 8, "a F32 \\[3\\] needs 12 bytes"),
        ({"a": entry(0, 8, [8], "I8")}, b"\0" * 8, "a is I8: quantised and integer"),
        ({"a": entry(0, 8, [2], "F33")}, b"\0" * 8, "unknown dtype 'F33'"),
        ({"a": entry(0, 8, [-2])}, b"\0" * 8, "must be counts"),
        ({"a": {"dtype": "F32"}}, b"", "must be counts"),
        ({"a": [1]}, b"", "not a table of tensors"),
        (b"{nonsense", b"", "not valid JSON"),
        (b'{"a": {}, "a": {}}', b"", "names 'a' twice"),
    ],
)
def test_damaged_headers_are_named(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_header(write(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize("raw", [b"", b"1234", struct.pack("<Q", 1 << 60) + b"{}", b"version https://git-lfs"])
def test_other_files_are_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_header(tmp_path / "x.safetensors")
