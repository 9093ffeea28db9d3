"""Running a checkpoint: one decoder in memory, whose weights are exchanged from task to task."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from merge.bundle import fast_bfloat16
from merge.checkpoint import Checkpoint, CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_IMPORTS = (
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
"""What `build_model` and `load_tokenizer` import, except the code of the family."""

WORTH_ROUNDING = 512
"""Hidden size from which bfloat16 products pay: smaller ones take little time in float32, and lose no accuracy."""


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """Load a model directory's tokenizer; nothing is downloaded and no code of the directory runs.

    Raises:
        CheckpointError: there is none that can be read.
    """
    from transformers import AutoTokenizer  # takes a second to import

    try:
        # Without a limit, because transformers warns about texts beyond it. The length of prompts is checked elsewhere.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, model_max_length=sys.maxsize
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory} has no tokenizer that can be read: {first_line(error)}") from error
    return tokenizer


def build_model(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    empty: bool = False,
    device: torch.device | None = None,
) -> "PreTrainedModel":
    """Build the decoder that a directory's config.json describes, its weights still to be assigned.

    Args:
        directory: the model's.
        dtype: of its weights. (A later `.to(dtype)` would round rotary frequencies, too.)
        empty: leave its parameters on the meta device, where they take no memory.
        device: of its parameters and buffers; None: torch's own, the processor.

    Raises:
        CheckpointError: transformers knows no such decoder (code of the directory is never run).
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # take seconds to import; a merge may run no model

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        build: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
        with _parameters_on_meta() if empty else nullcontext(), device or nullcontext():
            model = build(config, trust_remote_code=False, dtype=dtype)
        said = config.architectures or [type(model).__name__]
        if type(model).__name__ not in said:  # transformers also builds encoders so, which are then run in vain
            raise ValueError(f"config.json says {', '.join(said)}")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory} cannot be run as a causal language model: {first_line(error)}") from error
    model.train(False)
    model.requires_grad_(False)
    return model


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Move every parameter to the meta device as soon as a module has it; buffers keep their numbers."""
    register = torch.nn.Module.register_parameter

    def moved(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # one that is shared stays one
            parameter = torch.nn.Parameter(parameter.to("meta"), False)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = moved  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


@torch.no_grad()
def assign(model: "PreTrainedModel", checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's weights into a model.

    Raises:
        CheckpointError: the names do not agree.
    """
    for name, parameter in parameters_of(model, checkpoint).items():
        parameter.copy_(checkpoint.tensor(name))


def products(model: "PreTrainedModel") -> AbstractContextManager[object]:
    """The precision that calibration runs a model in: bfloat16 products if they are faster, else float32 ones.

    The residual stream, norms and all sums over tokens stay in float32.
    """
    # Norms have the residual stream's dtype; matrices may be mapped in the one of their files.
    stream = next((parameter.dtype for parameter in model.parameters() if parameter.ndim == 1), model.dtype)
    enabled = stream == torch.float32 and faster_rounded(model)
    return torch.autocast(device_of(model).type, torch.bfloat16, enabled=enabled)


def device_of(model: "PreTrainedModel") -> torch.device:
    """Where a model computes; some of its parameters may be on the meta device."""
    embedding: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return embedding.device


def faster_rounded(model: "PreTrainedModel", device: torch.device | None = None) -> bool:
    """Whether products in bfloat16 take less time than in float32, for a model of this size.

    Args:
        model: the decoder.
        device: the device that will compute; None: that of its weights.
    """
    on_gpu = (device or device_of(model)).type == "cuda"
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else fast_bfloat16()
    return bool(model.config.hidden_size >= WORTH_ROUNDING) and fast


def check_runs(checkpoint: Checkpoint) -> None:
    """Find out whether a checkpoint could be run, without memory for its weights.

    Raises:
        CheckpointError: it is not a causal language model, the names do not agree, or it has no tokenizer.
    """
    with torch.device("meta"):
        model = build_model(checkpoint.path)
    parameters_of(model, checkpoint)
    load_tokenizer(checkpoint.path)


def parameters_of(model: "PreTrainedModel", checkpoint: Checkpoint) -> dict[str, torch.nn.Parameter]:
    """A model's parameters by their names, which are those of a checkpoint's tensors.

    Raises:
        CheckpointError: the names do not agree.
    """
    parameters = dict(model.named_parameters())
    differ = sorted(set(parameters) ^ set(checkpoint.tensors))
    if differ:
        where = "is not in the checkpoint" if differ[0] in parameters else "is not a parameter of the model"
        raise CheckpointError(f"{checkpoint.path} cannot be run: {differ[0]} {where} ({len(differ)} names differ)")
    return parameters


def cache_keyword(model: "PreTrainedModel") -> str:
    """Name of the argument of a model's call that takes the key-value cache.

    transformers 5.24 renamed `past_key_values` to `cache`, and warns of the old name.
    """
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Token ids that end a reply: the config's and the tokenizer's."""
    configured = model.config.eos_token_id
    ids: Iterable[int | None] = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*ids, tokenizer.eos_token_id) if token is not None)


def first_line(error: Exception) -> str:
    """A library's message, cut to one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
