"""The weights of a Hugging Face model directory: which files have them, and opening one of these."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from merge.bundle.errors import BundleError
from merge.bundle.tensor_file import read_failure

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def model_shards(directory: Path) -> list[Path]:
    """The files of a model's weights: those that the index names, or the only one.

    Raises:
        BundleError: there are none, or the index is not readable or names a file that is not in the directory.
    """
    index = directory / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise BundleError(f"{index} is not a readable index of shards: {error}") from error
        for name in names:
            if Path(name).name != name or not (directory / name).is_file():
                raise BundleError(f"{index} names the shard {name!r}, which is not in that directory")
        return [directory / name for name in names]
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    raise BundleError(f"{directory} holds neither {SINGLE} nor {INDEX}")


@contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """A safetensors file, opened by safetensors' `safe_open`, to read one tensor after another.

    It is read and not mapped: a mapped file that another process truncates would end this one with SIGBUS.

    Raises:
        BundleError: the file cannot be read, when it is opened or later.
    """
    try:
        with safe_open(path, framework="pt", backend="pread") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        raise read_failure(path, error) from error
