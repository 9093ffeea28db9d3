"""Text to the features that the router's heads are linear in.

Semantics:  f = [ngrams(text), k]                c = (encoder(text) - centre), each layer's part of length 1 / √layers
            k_j = exp(-width |c - l_j|²)     for the landmarks l_j

The landmarks are vectors of training prompts. A head that is linear in k can hold several groups of prompts that lie
apart, as the intents of one domain do, and its score falls if no prompt was: this is Nyström's approximation of a
kernel machine (Williams and Seeger 2000). `centre` is the encoder's mean over everyday prompts, the same for every
router with this encoder, so that heads that were trained apart can be put into one router together with the landmarks
that they look at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from merge.bundle.ngrams import Featurizer, SparseRow
from merge.bundle.text_encoder import TextEncoder


class TextFeatures(Protocol):
    """Text to features."""

    @property
    def size(self) -> int:
        """D, how many there are."""
        ...

    @property
    def counted(self) -> int:
        """How many of them, the first ones, count occurrences and are 0 for most texts."""
        ...

    def rows(self, texts: Sequence[str]) -> list[SparseRow]:
        """The features of each text that are not 0."""
        ...


@dataclass(frozen=True, eq=False)
class EncodedFeatures:
    """Features of an encoder, and n-grams before them if there are any.

    Attributes:
        ngrams: None: the encoder alone.
        encoder: text to vectors.
        centre: [H] float32, what is taken off them.
        landmarks: l, [M, H] float32; M may be 0.
        width: of the kernel.
    """

    ngrams: Featurizer | None
    encoder: TextEncoder
    centre: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    width: float

    @property
    def size(self) -> int:
        """D."""
        return self.counted + len(self.landmarks)

    @property
    def counted(self) -> int:
        """The n-grams."""
        return 0 if self.ngrams is None else self.ngrams.size

    def rows(self, texts: Sequence[str]) -> list[SparseRow]:
        """The n-grams of each text that are not 0, and how near it is to each landmark."""
        dense = self.kernel(self.vectors(texts))
        places = np.arange(self.counted, self.size, dtype=np.intp)
        if self.ngrams is None:
            return [(places, values) for values in dense]
        return [
            (np.concatenate([found, places]), np.concatenate([counts, values]))
            for (found, counts), values in zip(self.ngrams.rows(texts), dense, strict=True)
        ]

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """c: [n, H]."""
        return centred(self.encoder.encode(texts), self.centre, len(self.encoder.layers))

    def kernel(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """k: [n, M], of vectors of length 1."""
        # By torch, whose threads have just run the encoder: numpy's own would wait for theirs, 0.1 s at the worst.
        products = (torch.from_numpy(vectors) @ torch.from_numpy(self.landmarks).T).numpy()
        distances = np.maximum(2 - 2 * products, 0)
        return np.asarray(np.exp(-self.width * distances), dtype=np.float32)

    def reads_like(self, other: TextFeatures) -> bool:
        """Whether the features are the same except for the landmarks."""
        return isinstance(other, EncodedFeatures) and (
            (self.ngrams, self.width) == (other.ngrams, other.width)
            and (self.encoder.digest, self.encoder.layers) == (other.encoder.digest, other.encoder.layers)
            and self.encoder.max_tokens == other.encoder.max_tokens
            and np.allclose(self.centre, other.centre, atol=0.01)  # another processor rounds in another way
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, EncodedFeatures)
            and self.reads_like(other)
            and np.array_equal(self.landmarks, other.landmarks)
        )

    __hash__ = None  # type: ignore[assignment]


def centred(encoded: NDArray[np.float32], centre: NDArray[np.float32], layers: int) -> NDArray[np.float32]:
    """Vectors around 0 in place of `centre`, of length 1, in which each layer weighs the same: [n, H]."""
    parts = (encoded - centre).reshape(len(encoded), layers, -1)
    parts /= np.maximum(np.linalg.norm(parts, axis=2, keepdims=True), 1e-9) * np.sqrt(layers)
    return np.asarray(parts.reshape(len(encoded), -1), dtype=np.float32)
