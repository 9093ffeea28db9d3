"""LoRA adapters as experts: what is served of them beyond what the reader checks."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from merge.bundle import Expert, model_name, own_settings, read_adapter
from serve.model import ModelError

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"

_log = logging.getLogger("overtone")


@dataclass(frozen=True)
class AdapterRules:
    """What this server asks of a LoRA adapter.

    Attributes:
        max_rank: the largest rank; 0: adapters are not served.
        base: the model's directory.
        tied: the model's output head is its embedding.
    """

    max_rank: int
    base: Path
    tied: bool

    def read(self, name: str, directory: Path, backbone_digest: str) -> tuple[str, Expert]:
        """The content digest of an adapter and the expert that it is.

        Raises:
            ModelError: adapters are not served, a rank is too large, or a tied embedding and its head would differ.
            BundleError: see `read_adapter` and `own_settings`.
        """
        if not self.max_rank:
            raise ModelError(
                f"{directory}: the server has no room for LoRA adapters; start it with --enable-lora or --lora-modules"
            )
        digest, expert = read_adapter(directory, name, backbone_digest)
        rank = max(delta.rank for delta in expert.low_rank.values())
        if rank > self.max_rank:
            raise ModelError(
                f"{directory} has rank {rank}, more than the server's {self.max_rank}: start it with "
                f"--max-lora-rank {rank}"
            )
        if self.tied and _EMBEDDING in expert.low_rank:
            expert = self._with_tied_head(expert, directory)
        self._compare_base(name, expert.metadata.get("base_model_name_or_path", ""))
        return digest, replace(expert, settings=own_settings(self.base, directory))

    def _with_tied_head(self, expert: Expert, directory: Path) -> Expert:
        """The expert of an adapter that changes embedding and head alike, as an exported expert does.

        Raises:
            ModelError: it changes the embedding alone, or the two in different ways.
        """
        embedding, head = expert.low_rank[_EMBEDDING], expert.low_rank.get(_HEAD)
        parts = ("a", "b", "scale")
        if head is None or not all(torch.equal(getattr(embedding, part), getattr(head, part)) for part in parts):
            raise ModelError(
                f"{directory} adapts embed_tokens, which {self.base} also uses as output head (tie_word_embeddings); "
                "untie the base, or train without that module"
            )
        return replace(expert, low_rank={name: part for name, part in expert.low_rank.items() if name != _HEAD})

    def _compare_base(self, name: str, trained_on: str) -> None:
        """Warn if the adapter says that it belongs to a model of another name; its shapes are checked anyway."""
        if trained_on and model_name(self.base).casefold() != model_name(Path(trained_on)).casefold():
            _log.warning(
                "adapter %r was trained on %s and is served on %s: replies are wrong unless they are the same model",
                *(name, trained_on, self.base),
            )
