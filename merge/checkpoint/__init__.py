"""Hugging Face model directories: read one tensor at a time and validated, written in a stream and whole or not at all.

`header` checks the header of a safetensors file, `reader` opens a directory, `finite` looks for NaN, `writer`
writes a directory. Pickled weights are never opened. Whether checkpoints belong together is `merge.check`'s business.
"""

from merge.bundle.shards import INDEX, SINGLE
from merge.checkpoint.error import CheckpointError, Faults
from merge.checkpoint.finite import count_not_finite
from merge.checkpoint.header import FLOAT_DTYPES, TensorInfo, read_header
from merge.checkpoint.reader import (
    TIED,
    Checkpoint,
    copy_settings,
    is_gguf,
    open_checkpoint,
    read_headers,
    read_json,
    setting_files,
    unquantised,
)
from merge.checkpoint.writer import SHARD_BYTES, CheckpointWriter, TensorSpec

__all__ = [
    "FLOAT_DTYPES",
    "INDEX",
    "SHARD_BYTES",
    "SINGLE",
    "TIED",
    "Checkpoint",
    "CheckpointError",
    "CheckpointWriter",
    "Faults",
    "TensorInfo",
    "TensorSpec",
    "copy_settings",
    "count_not_finite",
    "is_gguf",
    "open_checkpoint",
    "read_header",
    "read_headers",
    "read_json",
    "setting_files",
    "unquantised",
]
