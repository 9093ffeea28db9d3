"""The decoder of the served families over paged keys and values, with a different expert for each token.

`config` has what a family says of its layers, `families` and `read_config` read it from config.json, `rope` turns
positions into angles, `layers`, `layer`, `lookup` and `decoder` compute what `batch` plans, `weights` loads a Hugging
Face directory, `huge_pages` asks for large pages to hold it in, and `residuals` holds the resident experts' residuals
beside the weights: `residual_shape` says how large its slots are, `packed` what is copied to them.
"""

from serve.model.batch import ForwardBatch
from serve.model.config import LayerConfig, ModelConfig, RoutedConfig, TensorNames
from serve.model.decoder import Decoder, KvCache
from serve.model.errors import ModelError
from serve.model.packed import PackedExpert
from serve.model.read_config import read_config
from serve.model.residual_shape import ResidualShape
from serve.model.residuals import ResidualBanks
from serve.model.weights import load_model

__all__ = [
    "Decoder",
    "ForwardBatch",
    "KvCache",
    "LayerConfig",
    "ModelConfig",
    "ModelError",
    "PackedExpert",
    "ResidualBanks",
    "ResidualShape",
    "RoutedConfig",
    "TensorNames",
    "load_model",
    "read_config",
]
