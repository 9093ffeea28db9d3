"""A router's files: router.json, router.safetensors and, if the router includes an encoder, encoder/.

Formats: 1 has byte n-grams; 2 has word n-grams beside them; 3 has an encoder, whose weights lie in encoder/ or are the
bundle's backbone.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from merge.bundle.encoder_files import EncoderFiles
from merge.bundle.errors import BundleError, MissingFileError, UnreadableFileError
from merge.bundle.files import replaced
from merge.bundle.ngrams import Featurizer
from merge.bundle.router_model import RouterModel
from merge.bundle.tensor_file import read_tensor_file, unreadable
from merge.bundle.text_encoder import TextEncoder, backbone_encoder
from merge.bundle.text_features import EncodedFeatures, TextFeatures

ROUTER_FORMATS = (1, 2, 3)

_BACKBONE, _OWN = "backbone", "router"


def save_router(directory: Path, model: RouterModel) -> None:
    """Write router.safetensors (weights in float16), router.json and the encoder that the router includes."""
    directory.mkdir(exist_ok=True)
    tensors: dict[str, NDArray[Any]] = {"weight": model.weight.astype(np.float16, order="C"), "bias": model.bias}
    settings: dict[str, Any] = {
        "format_version": 0,
        "names": model.names,
        "offset": model.offset,
        "temperature": model.temperature,
        "threshold": model.threshold,
    }
    if model.top_k > 1:
        settings["top_k"] = model.top_k
    features = model.featurizer
    if isinstance(features, EncodedFeatures):
        encoder = features.encoder
        if encoder.files is not None:
            encoder.files.save(directory / "encoder")
        tensors |= {"centre": features.centre, "landmarks": features.landmarks.astype(np.float16)}
        settings |= {
            "format_version": 3,
            "featurizer": None if features.ngrams is None else asdict(features.ngrams),
            "encoder": {
                "weights": _BACKBONE if encoder.files is None else _OWN,
                "layers": encoder.layers,
                "max_tokens": encoder.max_tokens,
                "width": features.width,
            },
        }
    else:
        assert isinstance(features, Featurizer)
        settings |= {"format_version": 2 if features.words else 1, "featurizer": asdict(features)}
        if not features.words:  # as in format 1, which earlier versions read
            del settings["featurizer"]["words"]
    with replaced(directory / "router.safetensors") as partial:
        save_file(tensors, partial)
    with replaced(directory / "router.json") as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n")


def load_router(directory: Path, backbone: Path | None = None) -> RouterModel:
    """Read a router.

    Args:
        directory: of the router.
        backbone: the model whose hidden states it reads, if it reads any; None: that of the bundle that contains it.

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
        features = _features(directory, settings, dict(tensors), backbone or directory.absolute().parent / _BACKBONE)
        names, weight, bias = tuple(settings["names"]), tensors["weight"], tensors["bias"]
        if not names:
            raise BundleError(f"{directory}: the router names no expert")
        expected = (len(names), features.size)
        if weight.shape != expected or bias.shape != expected[:1] or not float(settings["temperature"]) > 0:
            raise BundleError(
                f"{directory}: weight {list(weight.shape)} is not {expected[0]} names by {expected[1]} features"
            )
        return RouterModel(
            names=names,
            weight=weight.numpy(),
            bias=bias.to(torch.float32).numpy(),
            offset=float(settings["offset"]),
            temperature=float(settings["temperature"]),
            threshold=float(settings["threshold"]),
            featurizer=features,
            top_k=int(settings.get("top_k", 1)),
        )
    except (FileNotFoundError, MissingFileError) as error:
        raise MissingFileError(f"{directory} holds no readable router: {error}") from error
    except OSError as error:
        raise UnreadableFileError(unreadable(directory / "router.json", error)) from error
    except BundleError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{directory} holds no readable router: {type(error).__name__}: {error}") from error


def _features(directory: Path, settings: dict[str, Any], tensors: dict[str, Tensor], backbone: Path) -> TextFeatures:
    ngrams = None if settings["featurizer"] is None else Featurizer(**settings["featurizer"])
    if settings["format_version"] < 3:
        if ngrams is None:
            raise BundleError(f"{directory}: the router has no features")
        return ngrams
    found = settings["encoder"]
    layers, max_tokens = tuple(map(int, found["layers"])), int(found["max_tokens"])
    if found["weights"] == _BACKBONE:
        encoder = backbone_encoder(backbone, layers, max_tokens)
    else:
        encoder = TextEncoder(EncoderFiles.load(directory / "encoder"), layers, max_tokens)
    centre, landmarks = tensors["centre"].to(torch.float32), tensors["landmarks"].to(torch.float32)
    if centre.shape != (encoder.size,) or landmarks.dim() != 2 or landmarks.shape[1] != encoder.size:
        raise BundleError(
            f"{directory}: centre {list(centre.shape)} and landmarks {list(landmarks.shape)} are not of the "
            f"encoder's {encoder.size} features"
        )
    return EncodedFeatures(ngrams, encoder, centre.numpy(), landmarks.numpy(), float(found["width"]))
