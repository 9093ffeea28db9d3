"""The decoder of the served families over paged keys and values, with a different expert for each token.

`config` describes the layers of a model, and `families` reads it from config.json. `rope` turns positions into angles.
`layers`, `layer`, `lookup` and `decoder` compute what `batch` plans. `weights` loads a Hugging Face directory, and
`huge_pages` requests large pages for it. `residuals` holds the residuals of the resident experts beside the weights:
`residual_shape` defines the size of its slots, and `packed` what is copied to them.
"""

from serve.model.batch import ForwardBatch
from serve.model.config import LayerConfig, ModelConfig, RoutedConfig, TensorNames
from serve.model.decoder import Decoder, KvCache
from serve.model.errors import ModelError
from serve.model.families import read_config
from serve.model.packed import PackedExpert
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
