"""Hugging Face model directories: read one tensor at a time and validated, written in a stream and whole or not at all.

`header` checks what a safetensors file says of itself, `reader` opens a directory, `compatible` says whether fine-tunes
belong to a base, `writer` writes a directory. Pickled weights are never opened.
"""

from merge.checkpoint.compatible import check_compatible
from merge.checkpoint.error import CheckpointError
from merge.checkpoint.header import FLOAT_DTYPES, TensorInfo, read_header
from merge.checkpoint.reader import Checkpoint, copy_settings, open_checkpoint
from merge.checkpoint.writer import CheckpointWriter, TensorSpec

__all__ = [
    "FLOAT_DTYPES",
    "Checkpoint",
    "CheckpointError",
    "CheckpointWriter",
    "TensorInfo",
    "TensorSpec",
    "check_compatible",
    "copy_settings",
    "open_checkpoint",
    "read_header",
]
