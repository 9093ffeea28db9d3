"""The router's model: what training and serving must compute alike, and its files.

Semantics:  f = features(text)  [D], sparse
            z_i = (weight_i · f + bias_i - offset) / temperature
            p_i = exp(z_i) / (1 + Σ_j exp(z_j))          (the 1 is "none": the backbone alone)

Each row of `weight` is one expert's own head, so that one can be added without touching the others.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from merge.bundle.errors import BundleError, MissingFileError, UnreadableFileError
from merge.bundle.files import replaced
from merge.bundle.tensor_file import read_tensor_file, unreadable

ROUTER_FORMATS = (1, 2)
"""1: byte n-grams; 2: word n-grams beside them."""

_FIRST, _LAST = ord("0"), ord("9")
_SPACE = ord(" ")
_MULTIPLIER = np.uint32(0x01000193)  # FNV's prime
_MIXER = np.uint32(0x9E3779B1)  # 2^32 / golden ratio: spreads neighbouring hashes over the buckets
_INVERSE = np.uint32(pow(0x01000193, -1, 2**32))
_WORDS = 64  # keeps the hashes of word n-grams apart from those of byte n-grams of the same length
_IN_WORD = np.array([byte >= 128 or chr(byte).isalnum() or byte == ord("_") for byte in range(256)])


@dataclass(frozen=True)
class Featurizer:
    """Text to a vector of hashed byte n-grams and, where `words` is not 0, word n-grams.

    The text is lower-cased, runs of white space become one space, digits become "0" (a year is a year), and one
    space is put at either end so that n-grams see word boundaries. Each n-gram falls into one of 2^bits buckets and
    counts 1 + log(occurrences); n-grams of each kind have length 1 together, divided by √2 where there are two kinds.
    Words are runs of ASCII letters, digits, "_" and bytes above 127. Of a text longer than `window` bytes, the first
    and last halves of the window are read.

    Attributes:
        bits: log2 of the number of buckets.
        shortest, longest: lengths of the byte n-grams.
        window: bytes of a text that are read.
        words: the longest word n-gram; 0: none, as in routers of format 1.
    """

    bits: int = 14
    shortest: int = 3
    longest: int = 5
    window: int = 8192
    words: int = 0

    @property
    def size(self) -> int:
        """D, the number of buckets."""
        return 1 << self.bits

    def features(self, text: str) -> NDArray[np.float32]:
        """Features of a text: [D] float32; 0 for a text shorter than every n-gram."""
        out = np.zeros(self.size, dtype=np.float32)
        buckets, weights = self.nonzero(text)
        out[buckets] = weights
        return out

    def nonzero(self, text: str) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """The features of a text that are not 0: their places, [K] ascending, and values, [K] float32."""
        data = np.frombuffer(f" {' '.join(text.lower().split())} ".encode(), dtype=np.uint8)
        if len(data) > self.window:
            half = self.window // 2
            data = np.concatenate([data[:half], data[-half:]])
        data = np.where((data >= _FIRST) & (data <= _LAST), np.uint8(_FIRST), data)
        kinds = [self._byte_ngrams(data.astype(np.uint32))]
        if self.words:
            kinds.append(self._word_ngrams(data))
        parts = [_counted(hashes >> np.uint32(32 - self.bits)) for hashes in kinds if len(hashes)]
        if len(kinds) == 1 or not parts:
            return parts[0] if parts else (np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.float32))
        places, where = np.unique(np.concatenate([places for places, _ in parts]), return_inverse=True)
        values = np.bincount(where, weights=np.concatenate([values for _, values in parts]))
        return places, (values / np.sqrt(len(kinds))).astype(np.float32)

    def _byte_ngrams(self, data: NDArray[np.uint32]) -> NDArray[np.uint32]:
        rolling = np.zeros(len(data), dtype=np.uint32)
        hashes = [rolling[:0]]
        spaces = np.concatenate([[0], np.cumsum(data == _SPACE)])
        for length in range(1, min(self.longest, len(data)) + 1):
            rolling = rolling[: len(data) - length + 1] * _MULTIPLIER + data[length - 1 :]
            if length >= self.shortest:
                found = _mixed(rolling, length)
                if self.words:  # a space stands at its ends at most
                    found = found[spaces[length - 1 : len(data)] == spaces[1 : len(data) - length + 2]]
                hashes.append(found)
        return np.concatenate(hashes)

    def _word_ngrams(self, data: NDArray[np.uint8]) -> NDArray[np.uint32]:
        inside = np.concatenate([[False], _IN_WORD[data], [False]])
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        starts, ends = edges[::2], edges[1::2]
        # Σ over a word of byte · M^(distance to its start), for all words at once: a difference of running sums.
        powers = np.cumprod(np.full(len(data), _MULTIPLIER), dtype=np.uint32)
        sums = np.concatenate([np.zeros(1, dtype=np.uint32), np.cumsum(data * powers, dtype=np.uint32)])
        words = (sums[ends] - sums[starts]) * np.cumprod(np.full(len(data) + 1, _INVERSE), dtype=np.uint32)[starts]
        rolling = np.zeros(len(words), dtype=np.uint32)
        hashes = [rolling[:0]]
        for length in range(1, min(self.words, len(words)) + 1):
            rolling = rolling[: len(words) - length + 1] * _MIXER + words[length - 1 :]
            hashes.append(_mixed(rolling, _WORDS + length))
        return np.concatenate(hashes)


def _mixed(rolling: NDArray[np.uint32], salt: int) -> NDArray[np.uint32]:
    result: NDArray[np.uint32] = (rolling ^ (rolling >> np.uint32(15)) ^ np.uint32(salt)) * _MIXER
    return result


def _counted(buckets: NDArray[np.uint32]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The buckets that occur, ascending, with 1 + log(occurrences), of length 1 together."""
    present, counts = np.unique(buckets, return_counts=True)
    weights = 1.0 + np.log(counts)
    return present.astype(np.intp), (weights / np.linalg.norm(weights)).astype(np.float32)


@dataclass(frozen=True)
class RouterModel:
    """A trained router.

    Attributes:
        names: the experts, one a row of `weight`.
        weight: [E, D] float32, in Fortran order: a prompt reads the columns of its few features.
        bias: [E] float32.
        offset, temperature: calibration of the scores to probabilities.
        threshold: where the best expert's probability is lower, the backbone answers alone.
        featurizer: text to features.
    """

    names: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    offset: float
    temperature: float
    threshold: float
    featurizer: Featurizer

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", np.asfortranarray(self.weight))

    def features(self, text: str) -> NDArray[np.float32]:
        """[D] float32."""
        return self.featurizer.features(text)

    def probabilities(self, text: str) -> NDArray[np.float64]:
        """[E] float64, each expert's probability; what is missing to 1 is "none"."""
        buckets, values = self.featurizer.nonzero(text)
        scores = values @ self.weight.T[buckets] + self.bias
        logits = (scores.astype(np.float64) - self.offset) / self.temperature
        top = max(float(logits.max(initial=0.0)), 0.0)
        powers = np.exp(logits - top)
        result: NDArray[np.float64] = powers / (np.exp(-top) + powers.sum())
        return result


def save_router(directory: Path, model: RouterModel) -> None:
    """Write router.safetensors (weights in float16) and router.json."""
    directory.mkdir(exist_ok=True)
    with replaced(directory / "router.safetensors") as partial:
        save_file({"weight": model.weight.astype(np.float16, order="C"), "bias": model.bias}, partial)
    featurizer = asdict(model.featurizer)
    if not model.featurizer.words:  # as in format 1, which earlier versions read
        del featurizer["words"]
    settings = {
        "format_version": 2 if model.featurizer.words else 1,
        "names": model.names,
        "offset": model.offset,
        "temperature": model.temperature,
        "threshold": model.threshold,
        "featurizer": featurizer,
    }
    with replaced(directory / "router.json") as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n")


def load_router(directory: Path) -> RouterModel:
    """Read a router.

    Raises:
        MissingFileError, UnreadableFileError: a file cannot be opened.
        BundleError: a file is missing or damaged, or shapes and names do not agree.
    """
    try:
        settings = json.loads((directory / "router.json").read_bytes())
        if settings["format_version"] not in ROUTER_FORMATS:
            raise BundleError(
                f"{directory} has router format {settings['format_version']}; this version reads "
                + " and ".join(map(str, ROUTER_FORMATS))
            )
        tensors = read_tensor_file(directory / "router.safetensors").tensors
        model = RouterModel(
            names=tuple(settings["names"]),
            weight=_by_columns(tensors["weight"]).to(torch.float32).numpy(),
            bias=tensors["bias"].to(torch.float32).numpy(),
            offset=float(settings["offset"]),
            temperature=float(settings["temperature"]),
            threshold=float(settings["threshold"]),
            featurizer=Featurizer(**settings["featurizer"]),
        )
    except (FileNotFoundError, MissingFileError) as error:
        raise MissingFileError(f"{directory} holds no readable router: {error}") from error
    except OSError as error:
        raise UnreadableFileError(unreadable(directory / "router.json", error)) from error
    except BundleError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{directory} holds no readable router: {type(error).__name__}: {error}") from error
    if not model.names:
        raise BundleError(f"{directory}: the router names no expert")
    expected = (len(model.names), model.featurizer.size)
    if model.weight.shape != expected or model.bias.shape != expected[:1] or not model.temperature > 0:
        raise BundleError(
            f"{directory}: weight {list(model.weight.shape)} is not {expected[0]} names by {expected[1]} features"
        )
    return model


def _by_columns(weight: torch.Tensor) -> torch.Tensor:
    """A matrix in Fortran order; what is not a matrix is left to the check of shapes."""
    return weight.T.contiguous().T if weight.dim() == 2 else weight
