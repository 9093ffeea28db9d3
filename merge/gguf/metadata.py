"""What a GGUF file says: its keys and values, and its tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, dequantize
from torch import Tensor

from merge.checkpoint import CheckpointError
from merge.methods.vectors import row_blocks

PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
"""Types that are not quantised."""


@dataclass(frozen=True)
class Metadata:
    """An opened file.

    Attributes:
        file: its path.
        architecture: llama.cpp's name of it.
        values: of the keys, scalars and strings; of an array (`tokenizer.ggml.tokens`) its length.
        tensors: by llama.cpp's names.
    """

    file: Path
    architecture: str
    values: Mapping[str, Any]
    tensors: Mapping[str, ReaderTensor]

    def own(self) -> dict[str, Any]:
        """The values of the keys that begin with the architecture's name, without it."""
        prefix = f"{self.architecture}."
        return {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in torch's order."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape.tolist()))

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of the converted weights: the type of most entries, or bfloat16 if that type is quantised."""
        sizes: dict[GGMLQuantizationType, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.tensor_type] = sizes.get(tensor.tensor_type, 0) + int(tensor.n_elements)
        return PLAIN.get(max(sizes, key=lambda kind: sizes[kind]), torch.bfloat16)

    def tensor(self, name: str, dtype: torch.dtype, index: int | None = None) -> Tensor:
        """A tensor multiplied out, some rows at a time.

        Args:
            name: llama.cpp's.
            dtype: of the result.
            index: of one matrix in a stack of them; None: all.

        Raises:
            CheckpointError: its type is not supported.
        """
        found = self.tensors[name]
        source, shape = found.data, self.shape(name)
        if index is not None:
            source, shape = source[index], shape[1:]
        whole = torch.empty(shape, dtype=dtype)
        try:
            for rows in row_blocks(shape):
                data = source if rows is None else source[rows]
                part = torch.from_numpy(dequantize(data, found.tensor_type).copy())
                whole[slice(None) if rows is None else rows] = part.to(dtype)
        except (NotImplementedError, ValueError) as error:
            raise CheckpointError(
                f"{self.file}: {name} has the type {found.tensor_type.name}, which cannot be dequantised: {error}"
            ) from error
        return whole


def read_metadata(file: Path) -> Metadata:
    """Open a GGUF file; its tensors stay on disk.

    Raises:
        CheckpointError: it cannot be read, is damaged, or is one part of several.
    """
    try:
        reader = GGUFReader(file)
        values = {key: _value(field.contents, field.data) for key, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise CheckpointError(f"{file} is not a readable GGUF file: {error} (truncated or damaged)") from error
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not tensors:
        raise CheckpointError(f"{file} names no architecture, or holds no tensors: a GGUF file of a model is needed")
    if int(values.get("split.count", 1)) > 1:
        raise CheckpointError(
            f"{file} is one of {values['split.count']} parts: join them with `llama-gguf-split --merge`, and name the "
            "whole file"
        )
    return Metadata(file, architecture, values, tensors)


def _value(contents: Callable[[], Any], data: list[int]) -> Any:
    """A field's value; of a long array its length, since vocabularies are read elsewhere."""
    return contents() if len(data) <= 256 else len(data)
