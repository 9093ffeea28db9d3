"""How a weight is quantised: its bits, and what shares a scale."""

from dataclasses import dataclass

EMBEDDINGS = ("embed_tokens", "lm_head")
"""Last parts of the names of modules that stay in 8 bits: every token's row counts, and 4 bits cost most there."""


@dataclass(frozen=True)
class Scheme:
    """Symmetric integers with a positive scale.

    Attributes:
        bits: 8 or 4, of an integer.
        group: neighbouring columns of a row that share a scale; None: the whole row shares one.
    """

    bits: int
    group: int | None = None

    @property
    def lowest(self) -> int:
        """The smallest integer, -2^(bits - 1)."""
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest integer, 2^(bits - 1) - 1."""
        return (1 << (self.bits - 1)) - 1

    def scales(self, columns: int) -> int:
        """The number of scales of a row; the last group of columns may be shorter."""
        return 1 if self.group is None else -(-columns // self.group)


INT8 = Scheme(8)
INT4 = Scheme(4, 32)
SCHEMES = {"int8": INT8, "int4": INT4}
"""What a recipe's `backbone.storage` and `--quantization` name."""


def scheme_of(storage: str, parameter: str) -> Scheme:
    """The scheme of a 2-D weight of a backbone: embeddings and the head have 8 bits in both storages.

    Args:
        storage: a key of `SCHEMES`.
        parameter: the weight's name, as in `model.layers.0.mlp.up_proj.weight`.
    """
    return INT8 if is_embedding(parameter) else SCHEMES[storage]


def is_embedding(parameter: str) -> bool:
    """Whether a weight is the embedding or the head, by its name."""
    return parameter.removesuffix(".weight").rpartition(".")[2] in EMBEDDINGS
