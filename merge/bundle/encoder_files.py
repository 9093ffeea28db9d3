"""A text encoder as files: a Hugging Face model's configuration, tokenizer and 8-bit weights.

Matrices are stored as 8-bit integers with a scale for each row, everything else in float32. MiniLM (22.6 M parameters)
takes 23 MB so.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor, nn

from merge.bundle.errors import BundleError
from merge.bundle.files import replaced
from merge.bundle.quantise import dequantise_rows, quantise_rows
from merge.bundle.tensor_file import read_tensor_file
from merge.bundle.tokenizer import read_tokenizer

_SCALE = "/scale"
_CONFIG, _TOKENIZER, _WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"


@dataclass(frozen=True)
class EncoderFiles:
    """What a text encoder is made from.

    Attributes:
        config: of the model, as transformers writes it.
        tokenizer: tokenizer.json.
        tensors: the weights by their names in the model; int8 matrices have a scale beside them, named `NAME/scale`.
    """

    config: Mapping[str, Any]
    tokenizer: str
    tensors: Mapping[str, Tensor]

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex: encoders of one digest read text alike."""
        hashed = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        hashed.update(self.tokenizer.encode())
        hashed.update(save(dict(sorted(self.tensors.items()))))
        return hashed.hexdigest()

    @classmethod
    def of_model(cls, directory: Path, layers: int | None = None, *, eight_bit: bool = True) -> "EncoderFiles":
        """Read a Hugging Face model directory.

        Args:
            directory: holds config.json, tokenizer.json and safetensors weights.
            layers: read the first ones alone; None: all.
            eight_bit: round the weights as they are stored in a bundle; else they keep their dtype.

        Raises:
            BundleError: it holds no such model, or one with fewer layers.
        """
        from transformers import AutoConfig, AutoModel  # takes seconds to import; only routers with an encoder need it

        tokenizer = read_tokenizer(directory).to_str()
        try:
            config = AutoConfig.from_pretrained(directory, local_files_only=True)
            most = getattr(config, "num_hidden_layers", 0)
            if getattr(config, "is_encoder_decoder", False) or not most:
                raise BundleError(f"{directory}: {config.model_type} is not an encoder or decoder with layers")
            if layers is not None and layers > most:
                raise BundleError(f"{directory} has {most} layers; layer {layers} does not exist")
            config.num_hidden_layers = most if layers is None else layers
            if getattr(config, "layer_types", None) is not None:
                config.layer_types = config.layer_types[: config.num_hidden_layers]
            with _quiet():
                model, found = AutoModel.from_pretrained(
                    directory, config=config, dtype="auto", local_files_only=True, output_loading_info=True
                )
        except BundleError:
            raise
        except Exception as error:  # the libraries raise OSError, ValueError, KeyError, SafetensorError, ...
            raise BundleError(f"{directory} holds no readable encoder: {error}") from error
        if missing := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
            raise BundleError(f"{directory} has no weight {missing[0]}")
        _without_pooler(model)
        tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}  # nothing stays mapped
        return cls(model.config.to_dict(), tokenizer, _rounded(tensors) if eight_bit else tensors)

    @classmethod
    def load(cls, directory: Path) -> "EncoderFiles":
        """Read what `save` wrote.

        Raises:
            BundleError: a file is missing or damaged.
        """
        try:
            config = json.loads((directory / _CONFIG).read_bytes())
            tokenizer = (directory / _TOKENIZER).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise BundleError(f"{directory} holds no readable encoder: {error}") from error
        return cls(config, tokenizer, read_tensor_file(directory / _WEIGHTS).tensors)

    def save(self, directory: Path) -> None:
        """Write config.json, tokenizer.json and model.safetensors."""
        directory.mkdir(exist_ok=True)
        for name, data in (
            (_CONFIG, json.dumps(self.config, indent=2).encode() + b"\n"),
            (_TOKENIZER, self.tokenizer.encode()),
            (_WEIGHTS, save(dict(self.tensors))),
        ):
            with replaced(directory / name) as partial:
                partial.write_bytes(data)

    def build(self, dtype: torch.dtype) -> tuple[nn.Module, Tokenizer]:
        """The model, without dropout and without its pooler, and its tokenizer.

        Raises:
            BundleError: the weights are not those of the configuration, or the tokenizer is damaged.
        """
        from transformers import CONFIG_MAPPING, AutoModel

        try:
            config = CONFIG_MAPPING[self.config["model_type"]].from_dict(dict(self.config))
            with torch.random.fork_rng(devices=[]):  # the first weights are random
                model: nn.Module = AutoModel.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
            _without_pooler(model)
            model.load_state_dict(_restored(self.tensors))
            tokenizer = Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # tokenizers raises Exception itself
            raise BundleError(f"the router's encoder is damaged: {type(error).__name__}: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return model.eval().requires_grad_(requires_grad=False), tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar, and no report of weights that are left out on purpose, such as a pooler's."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _without_pooler(model: nn.Module) -> None:
    """BERT's pooler is trained for another purpose, and is not read."""
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.register_module("pooler", None)


def _rounded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stored = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and tensor.is_floating_point():
            stored[name], stored[name + _SCALE] = quantise_rows(tensor.to(torch.float32))
        else:
            stored[name] = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    return stored


def _restored(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in stored.items():
        scale = stored.get(name + _SCALE)
        if not name.endswith(_SCALE):
            tensors[name] = tensor if scale is None else dequantise_rows(tensor, scale)
    return tensors
