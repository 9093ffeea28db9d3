"""The decoder: Llama, Mistral, Qwen2 and Qwen3 over paged keys and values, with a different expert for each token.

`config` reads config.json, `rope` turns positions into angles, `layers`, `lookup` and `decoder` compute, `weights`
loads a Hugging Face directory, `huge_pages` asks for large pages to hold it in, and `residuals` holds the resident
experts' residuals beside the weights: `residual_shape` says how large its slots are, `packed` what is copied to them.
"""

from serve.model.config import ModelConfig, read_config
from serve.model.decoder import Decoder, ForwardBatch, KvCache
from serve.model.errors import ModelError
from serve.model.packed import PackedExpert
from serve.model.residual_shape import ResidualShape
from serve.model.residuals import ResidualBanks
from serve.model.weights import load_model

__all__ = [
    "Decoder",
    "ForwardBatch",
    "KvCache",
    "ModelConfig",
    "ModelError",
    "PackedExpert",
    "ResidualBanks",
    "ResidualShape",
    "load_model",
    "read_config",
]
