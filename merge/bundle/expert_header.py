"""The header of an expert file: what is known of an expert without reading its tensors."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from merge.bundle.errors import BundleError
from merge.bundle.generation import GenerationSettings
from merge.bundle.tensor_file import read_failure

VERSION, VERSION_INT8, VERSION_LOW_RANK, VERSION_SETTINGS = 1, 2, 3, 4
"""A file with settings of generation says 4, any other with a low-rank part 3, with 8-bit sparse values 2, and any
other 1, so that earlier versions report what they cannot read."""

WIDEST = 1 << 31
"""Most columns of a weight."""

_ITEM_BYTES = {"U8": 1, "I8": 1, "U16": 2, "BF16": 2, "F16": 2, "I32": 4, "F32": 4}
"""Bytes of an element, by safetensors' names of the dtypes that experts have."""

# One key that holds JSON: safetensors writes several keys in an order that changes from run to run, and an expert's
# identity is the digest of its file.
HEADER_KEY = "overtone"


@dataclass(frozen=True)
class Header:
    """The JSON in the file's metadata.

    Attributes:
        task: the expert's name.
        backbone_digest: of the backbone that it was cut against.
        density: of its sparse parts.
        metadata: free text.
        gaps: (width, entries) of the weights stored as distances.
        settings: what its requests follow in place of the backbone's.
    """

    task: str
    backbone_digest: str
    density: float
    metadata: Mapping[str, str]
    gaps: Mapping[str, tuple[int, int]]
    settings: GenerationSettings = field(default_factory=GenerationSettings)

    @classmethod
    def parse(cls, text: str | None, path: Path) -> "Header":
        """Read the JSON of an expert file.

        Raises:
            BundleError: there is none, it lacks something, or it is of another format version.
        """
        if text is None:
            raise BundleError(f"{path} is not an expert file: its safetensors metadata lacks the key {HEADER_KEY!r}")
        try:
            header = json.loads(text)
            version = int(header["format_version"])
            parsed = cls(
                str(header["task"]),
                str(header["backbone_digest"]),
                float(header["density"]),
                {str(key): str(value) for key, value in header["metadata"].items()},
                {str(n): (int(g["width"]), int(g["entries"])) for n, g in header.get("gaps", {}).items()},
                GenerationSettings.parse(header.get("generation", {})),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{path} has a damaged expert header: {type(error).__name__}: {error}") from error
        if not VERSION <= version <= VERSION_SETTINGS:
            raise BundleError(f"{path} has expert format {version}; this version reads {VERSION} to {VERSION_SETTINGS}")
        return parsed


@dataclass(frozen=True)
class ExpertLayout:
    """What an expert file's header says.

    Attributes:
        entries: k of each 2-D weight with a sparse part.
        quantised: the weights whose sparse part has 8-bit values.
        dense: the 1-D parameters.
        bytes: of each parameter's tensors.
        ranks: r of each 2-D weight with a low-rank part.
        quantised_ranks: the weights whose low-rank part has 8-bit factors.
        settings: what its requests follow in place of the backbone's.
    """

    entries: Mapping[str, int]
    quantised: frozenset[str]
    dense: frozenset[str]
    bytes: Mapping[str, int]
    ranks: Mapping[str, int]
    quantised_ranks: frozenset[str]
    settings: GenerationSettings = field(default_factory=GenerationSettings)


def read_layout(path: Path) -> ExpertLayout:
    """Read an expert file's header alone.

    Raises:
        MissingFileError, UnreadableFileError: the file cannot be opened.
        BundleError: it is damaged.
    """
    try:
        with _opened(path) as (header, file):
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            shapes = {key: tuple(stored.get_shape()) for key, stored in slices.items()}
            dtypes = {key: stored.get_dtype() for key, stored in slices.items()}
            sizes = {key: _ITEM_BYTES[dtype] for key, dtype in dtypes.items()}
    except KeyError as error:
        raise BundleError(f"{path} holds a tensor of dtype {error.args[0]}, which no expert has") from error
    entries = {name: entries for name, (_, entries) in header.gaps.items()}
    kinds: dict[str, set[str]] = {"scale": set(), "delta": set()}
    nbytes: dict[str, int] = {}
    ranks: dict[str, int] = {}
    for key, shape in shapes.items():
        name, _, kind = key.rpartition(".")
        if kind == "index" and shape:
            entries[name] = shape[-1]
        if kind == "lora_a" and shape:
            ranks[name] = shape[0]
        kinds.setdefault(kind, set()).add(name)
        nbytes[name] = nbytes.get(name, 0) + math.prod(shape) * sizes[key]
    return ExpertLayout(
        entries,
        frozenset(kinds["scale"]),
        frozenset(kinds["delta"]),
        nbytes,
        ranks,
        frozenset(name for name in ranks if dtypes[f"{name}.lora_a"] == "I8"),
        header.settings,
    )


def read_header(path: Path) -> Header:
    """Read the JSON of an expert file's header.

    Raises:
        MissingFileError, UnreadableFileError: the file cannot be opened.
        BundleError: it is damaged.
    """
    with _opened(path) as (header, _):
        return header


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Header, Any]]:
    try:
        # `pread`: a mapped file that another process truncates would end this one with SIGBUS.
        with safe_open(path, framework="pt", backend="pread") as file:
            yield Header.parse((file.metadata() or {}).get(HEADER_KEY), path), file
    except (SafetensorError, OSError) as error:
        raise read_failure(path, error) from error


def expert_bytes(path: Path) -> int:
    """Bytes of the tensors in an expert file: all of it but the header."""
    return sum(read_layout(path).bytes.values())
