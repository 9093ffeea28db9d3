"""Opening everything that a recipe names, and going on after a fault."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import torch

from merge.bundle import GenerationSettings, own_settings
from merge.bundle.digest import file_digest, weights_digest
from merge.check.finding import Finding, errors, unreadable
from merge.checkpoint import (
    Checkpoint,
    CheckpointError,
    TensorInfo,
    is_gguf,
    open_checkpoint,
    setting_files,
    unquantised,
)
from merge.experts import (
    CalibrationError,
    Example,
    ExpertConfig,
    encode_prompts,
    job_bytes,
    own_encoders,
    prompt_encoder,
    read_examples,
    texts,
)
from merge.frank_wolfe.examples import read_target_examples
from merge.lora import AdaptedCheckpoint, is_adapter, open_adapter
from merge.progress import Progress
from merge.recipe import ModelEntry, Recipe
from merge.router import LEAST_PROMPTS, too_few_prompts
from merge.selection import is_selected
from merge.task_vectors import is_unchanged


@dataclass(frozen=True)
class Inputs:
    """Everything a recipe names, opened.

    Attributes:
        recipe: the recipe.
        experts: its experts block, resolved.
        base: θ₀.
        fine_tunes: θ_k by name, sorted.
        examples: of the calibration file, by task; None: no calibration.
    """

    recipe: Recipe
    experts: ExpertConfig
    base: Checkpoint
    fine_tunes: Mapping[str, Checkpoint]
    examples: Mapping[str, Sequence[Example]] | None

    @property
    def prompts(self) -> dict[str, list[str]] | None:
        """What the router learns from: the examples' distinct texts by task; None: no calibration."""
        return None if self.examples is None else {task: texts(items) for task, items in self.examples.items()}

    @cached_property
    def own_settings(self) -> dict[str, GenerationSettings]:
        """By task, the generation settings in which the fine-tune differs from the base. Its expert keeps them.

        Raises:
            BundleError: a file of a fine-tune cannot be read; the check has found it.
        """
        return {task: own_settings(self.base.path, *item.directories) for task, item in self.fine_tunes.items()}

    def calibration_tokens(self) -> tuple[dict[str, list[list[int]]], list[str]]:
        """Token ids of the prompts that experts are cut with, by task, and what the user should know of them.

        Raises:
            CalibrationError: a prompt cannot be encoded.
            CheckpointError: the base has no tokenizer that can be read.
        """
        settings = self.recipe.calibration
        if settings is None or self.examples is None:
            return {}, []
        encoders = own_encoders(prompt_encoder(self.base, settings), self.own_settings, settings)
        context = self.base.config.get("max_position_embeddings")
        return encode_prompts(encoders, self.examples, settings, context if isinstance(context, int) else None)

    def job_bytes(self) -> int:
        """Memory that cutting one expert takes at most, beyond the page cache."""
        runs_models = self.experts.needs_prompts and self.prompts is not None
        changed = {
            name
            for name in self.base.tensors
            if not all(is_unchanged(name, self.base, item) for item in self.fine_tunes.values())
        }
        return job_bytes(self.base, runs_models, self.experts.form, changed)

    def on(self, device: torch.device) -> "Inputs":
        """The same inputs, whose tensors are read to a device."""
        fine_tunes = {name: item.on(device) for name, item in self.fine_tunes.items()}
        return replace(self, base=self.base.on(device), fine_tunes=fine_tunes)

    def merged(self) -> Checkpoint:
        """The base, as far as it is merged: what else it has is copied."""
        return self.base.only(
            {name for name in self.base.tensors if is_selected(name, self.recipe.include, self.recipe.exclude)}
        )

    def digests(self) -> dict[str, dict[str, str]]:
        """Where each input is and what its weights are."""
        checkpoints = {"base": self.base, **{f"models/{name}": item for name, item in self.fine_tunes.items()}}
        weights = cache(weights_digest)  # LoRAs share their base, which is read once
        return {name: _digest(item, weights) for name, item in checkpoints.items()}

    def key(self, recipe: Path, digests: Mapping[str, Mapping[str, str]], versions: Mapping[str, str]) -> str:
        """Digest of all that a bundle depends on: an interrupted merge is resumed if it is the same.

        Args:
            recipe: its file.
            digests: from `digests`.
            versions: of the libraries.
        """
        digest = hashlib.sha256(recipe.read_bytes())
        for text in (*(f"{k}={v['sha256']}" for k, v in digests.items()), *(f"{k}={v}" for k, v in versions.items())):
            digest.update(f"{text}\0".encode())
        settings = (file for folder in self._folders() for file in setting_files(folder))
        calibration = () if self.recipe.calibration is None else (self.recipe.calibration.file,)
        for file in (*settings, *calibration):
            digest.update(f"{file.name}\0{file_digest(file)}\0".encode())
        return digest.hexdigest()

    def _folders(self) -> list[Path]:
        return [self.base.path, *(folder for item in self.fine_tunes.values() for folder in item.directories)]


def open_base(recipe: Recipe) -> tuple[Checkpoint | None, list[Finding]]:
    """Open θ₀."""
    try:
        if is_adapter(recipe.base_model):
            return None, errors("base", [f"{recipe.base_model} is an adapter; a base is a full checkpoint"])
        return _opened(recipe.base_model), []
    except CheckpointError as error:
        return None, errors("base", error.faults)
    except OSError as error:
        return None, unreadable("base", error)


def open_fine_tunes(recipe: Recipe, base: Checkpoint | None) -> tuple[dict[str, Checkpoint], list[Finding]]:
    """Open the fine-tunes that can be; an adapter needs the base."""
    opened: dict[str, Checkpoint] = {}
    found: list[Finding] = []
    for entry in sorted(recipe.models, key=lambda entry: entry.name):
        try:
            model = _open(entry, base)
        except CheckpointError as error:
            found += errors(f"models.{entry.name}", error.faults)
        except OSError as error:
            found += unreadable(f"models.{entry.name}", error)
        else:
            if model is not None:
                opened[entry.name] = model
    return opened, found


def open_examples(recipe: Recipe) -> tuple[dict[str, list[Example]] | None, list[Finding]]:
    """Read the calibration's examples, and their answers if the method uses them."""
    if recipe.calibration is None:
        return None, []
    config = recipe.frank_wolfe()
    try:
        examples = read_examples(recipe.calibration.file, [entry.name for entry in recipe.models])
        if config is not None:
            read_target_examples(recipe.calibration.file, config.objective.tasks, config.objective.replies == "answer")
    except CalibrationError as error:
        return None, errors("calibration", [str(error)])
    few = [task for task, items in examples.items() if len(texts(items)) < LEAST_PROMPTS]
    return examples, errors("calibration", [too_few_prompts(task) for task in few])


def _open(entry: ModelEntry, base: Checkpoint | None) -> Checkpoint | None:
    if entry.adapter is not None:
        return open_adapter(entry.adapter, _opened(entry.model))
    if is_adapter(entry.model):
        return None if base is None else open_adapter(entry.model, base)
    return _opened(entry.model)


def _opened(path: Path) -> Checkpoint:
    """A full checkpoint: a directory, or a GGUF file, which is converted first."""
    if not is_gguf(path):
        return unquantised(open_checkpoint(path))
    from merge.gguf import as_directory  # the package gguf takes a while to import

    return open_checkpoint(as_directory(path, Progress().say))


def _digest(checkpoint: Checkpoint, weights: Callable[[frozenset[Path]], str]) -> dict[str, str]:
    if not isinstance(checkpoint, AdaptedCheckpoint):
        return {"path": str(checkpoint.path), "sha256": weights(_files(checkpoint.tensors, checkpoint.buffers))}
    text = (
        f"{weights(_files(checkpoint.adapter.tensors))}\n{file_digest(checkpoint.path / 'adapter_config.json')}\n"
        f"{weights(_files(checkpoint.model.tensors, checkpoint.model.buffers))}\n"
    )
    return {
        "path": str(checkpoint.path),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "adapts": str(checkpoint.model.path),
    }


def _files(*headers: Mapping[str, TensorInfo]) -> frozenset[Path]:
    """The files that tensors are read from; other files in the directory are not inputs."""
    return frozenset(info.file for header in headers for info in header.values())
