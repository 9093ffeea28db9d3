"""How the tensors in PEFT's adapter_model.safetensors are named."""

import re
from dataclasses import dataclass

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

FACTORS = {
    "lora_A.weight": "a", "lora_B.weight": "b", "lora_embedding_A": "embedding_a", "lora_embedding_B": "embedding_b",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
}  # fmt: skip

WRAPPERS = (".base_layer", ".modules_to_save.default", ".modules_to_save")
"""Parts of names that PEFT puts between a module and its own tensors."""

NAMED_FACTOR = re.compile(r"\.(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.default(?=\.|$)")
"""Factors as a PeftModel's state_dict names them, with the adapter's usual name; PEFT's own files leave it out."""


@dataclass(frozen=True)
class AdapterTensorName:
    """A name in an adapter's file, taken apart.

    Attributes:
        inner: the name within the model, without what PEFT put into it.
        module: of a factor, the module that it adapts; otherwise "".
        factor: which factor it is, a value of `FACTORS`; "" for a tensor that is not a factor.
        other: it belongs to a kind of adapter that is not a plain LoRA or DoRA.
    """

    inner: str
    module: str = ""
    factor: str = ""
    other: bool = False

    @classmethod
    def parse(cls, name: str) -> "AdapterTensorName":
        """Take a name apart."""
        inner = name.removeprefix(PREFIX)
        for wrapper in WRAPPERS:
            inner = inner.replace(f"{wrapper}.", ".")
        inner = NAMED_FACTOR.sub(r".\1", inner)
        for suffix, factor in FACTORS.items():
            if inner.endswith(f".{suffix}"):
                return cls(inner, inner.removesuffix(f".{suffix}"), factor)
        return cls(inner, other=".lora_" in inner or "trainable_tokens" in inner)
