"""The header of an expert file: what can be told of an expert without reading its tensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from merge.bundle.errors import BundleError

VERSION, VERSION_INT8 = 1, 2
"""A file with 8-bit values says 2, so that a reader from before them says so too; any other says 1."""

WIDEST = 1 << 31
"""Most columns of a weight."""

# One key that holds JSON: safetensors writes several keys in an order that changes from run to run, and an expert's
# identity is the digest of its file.
HEADER_KEY = "overtone"


@dataclass(frozen=True)
class Header:
    """The JSON in the file's metadata; `gaps` are (width, entries) of the weights stored as distances."""

    task: str
    backbone_digest: str
    density: float
    metadata: Mapping[str, str]
    gaps: Mapping[str, tuple[int, int]]

    @classmethod
    def parse(cls, text: str | None, path: Path) -> "Header":
        """Read the JSON of an expert file.

        Raises:
            BundleError: there is none, it lacks something, or it is of another format version.
        """
        if text is None:
            raise BundleError(f"{path} is no expert file: its safetensors metadata lacks the key {HEADER_KEY!r}")
        try:
            header = json.loads(text)
            version = int(header["format_version"])
            parsed = cls(
                str(header["task"]),
                str(header["backbone_digest"]),
                float(header["density"]),
                {str(key): str(value) for key, value in header["metadata"].items()},
                {str(n): (int(g["width"]), int(g["entries"])) for n, g in header.get("gaps", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{path} has a damaged expert header: {type(error).__name__}: {error}") from error
        if version not in {VERSION, VERSION_INT8}:
            raise BundleError(f"{path} has expert format {version}; this version reads {VERSION} and {VERSION_INT8}")
        return parsed


@dataclass(frozen=True)
class ExpertLayout:
    """What an expert file's header says.

    Attributes:
        entries: k of each 2-D weight.
        quantised: the weights whose values have 8 bits.
        dense: the 1-D parameters.
        bytes: of each parameter's tensors.
    """

    entries: Mapping[str, int]
    quantised: frozenset[str]
    dense: frozenset[str]
    bytes: Mapping[str, int]


def read_layout(path: Path) -> ExpertLayout:
    """Read an expert file's header alone.

    Raises:
        BundleError: missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = Header.parse((file.metadata() or {}).get(HEADER_KEY), path)
        with path.open("rb") as file:
            stored = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} is not a readable safetensors file: {error}") from error
    entries = {name: entries for name, (_, entries) in header.gaps.items()}
    kinds: dict[str, set[str]] = {"scale": set(), "delta": set()}
    sizes: dict[str, int] = {}
    for key, info in stored.items():
        name, _, kind = key.rpartition(".")
        if key == "__metadata__":
            continue
        if kind == "index":
            entries[name] = info["shape"][-1]
        kinds.setdefault(kind, set()).add(name)
        begin, end = info["data_offsets"]
        sizes[name] = sizes.get(name, 0) + end - begin
    return ExpertLayout(entries, frozenset(kinds["scale"]), frozenset(kinds["delta"]), sizes)


def expert_bytes(path: Path) -> int:
    """Bytes of the tensors in an expert file: all of it but the header."""
    return sum(read_layout(path).bytes.values())
