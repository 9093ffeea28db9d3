"""Text to the mean hidden states of a small encoder, or of a backbone's first layers.

Semantics:  h_l [T, H], the hidden states after layer l of a text's T tokens (l = 0: the embeddings)
            f = concat over the layers l that are read of  m_l / |m_l|,   m_l = mean over T of h_l

Mean pooling, special tokens included, is that of Sentence-BERT (Reimers and Gurevych 2019, arXiv 1908.10084).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from merge.bundle.encoder_files import EncoderFiles
from merge.bundle.errors import BundleError
from merge.bundle.processor import fast_bfloat16

CHARACTERS = 32
"""Characters that are tokenised for each token that is read; a longer text loses its middle before."""

BATCH = 32
"""Texts in one pass."""


class TextEncoder:
    """An encoder with its tokenizer. It does not change; safe to call from several threads.

    Of a text with more tokens than are read, the first and the last half of them are: a prompt says what it wants at
    its beginning or at its end, with material between.

    Attributes:
        files: what it was made from, included in a router; None if it is the bundle's backbone.
        digest: encoders of one digest read text alike.
        layers: hidden states that are read; the last is that after the model's last layer.
        max_tokens: tokens of a text that are read, special ones included.
    """

    def __init__(self, files: EncoderFiles, layers: Sequence[int], max_tokens: int, *, brought: bool = True):
        """Build the model, in bfloat16 if the processor multiplies it fast, else in float32.

        Args:
            files: the model and its tokenizer.
            layers: hidden states to read.
            max_tokens: tokens of a text to read.
            brought: whether a router with this encoder includes its files.

        Raises:
            BundleError: the files are damaged, or have fewer layers or positions than required.
        """
        dtype = torch.bfloat16 if fast_bfloat16() else torch.float32
        self.files = files if brought else None
        self.digest = files.digest if brought else "backbone"
        self.layers, self.max_tokens = tuple(layers), max_tokens
        self._module, self._tokenizer = files.build(dtype)
        self._before, self._after = _special_tokens(self._tokenizer)
        depth, width = files.config.get("num_hidden_layers", 0), files.config.get("hidden_size", 0)
        if not self.layers or min(self.layers) < 0 or max(self.layers) > depth:
            raise BundleError(f"the router's encoder has {depth} layers; it reads {list(self.layers)}")
        positions = files.config.get("max_position_embeddings") or max_tokens
        least = len(self._before) + len(self._after) + 2
        if not least <= max_tokens <= positions:
            raise BundleError(
                f"the router's encoder reads {least} to {positions} tokens of a text; max_tokens is {max_tokens}"
            )
        self.size = width * len(self.layers)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Features of texts: [n, size] float32, each layer's part of length 1."""
        tokens = [self._tokens(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))  # texts of like length together: less padding
        out = np.zeros((len(texts), self.size), dtype=np.float32)
        for start in range(0, len(texts), BATCH):
            rows = order[start : start + BATCH]
            out[rows] = self._passed([tokens[i] for i in rows])
        return out

    def _tokens(self, text: str) -> list[int]:
        half = CHARACTERS * self.max_tokens // 2
        if len(text) > 2 * half:
            text = f"{text[:half]} {text[-half:]}"
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        room = self.max_tokens - len(self._before) - len(self._after)
        if len(ids) > room:
            ids = ids[: room - room // 2] + ids[len(ids) - room // 2 :]
        return [*self._before, *ids, *self._after] or [0]

    def _passed(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        longest = max(map(len, tokens))
        ids = torch.zeros(len(tokens), longest, dtype=torch.int64)
        real = torch.zeros(len(tokens), longest, dtype=torch.int64)
        for row, one in enumerate(tokens):
            ids[row, : len(one)] = torch.tensor(one)
            real[row, : len(one)] = 1
        with torch.inference_mode():
            states = self._module(input_ids=ids, attention_mask=real, output_hidden_states=True).hidden_states
            share = (real / real.sum(dim=1, keepdim=True)).to(torch.float32).unsqueeze(1)
            means = [(share @ states[layer].to(torch.float32)).squeeze(1) for layer in self.layers]
            return torch.cat([torch.nn.functional.normalize(mean, dim=1) for mean in means], dim=1).numpy()


def backbone_encoder(directory: Path, layers: Sequence[int], max_tokens: int) -> TextEncoder:
    """An encoder that reads the hidden states of a backbone's first layers.

    Raises:
        BundleError: the directory holds no such model, or it has fewer layers.
    """
    files = EncoderFiles.of_model(directory, max(layers), eight_bit=False)
    return TextEncoder(files, layers, max_tokens, brought=False)


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []
