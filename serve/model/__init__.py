"""The decoder: Llama, Mistral, Qwen2 and Qwen3 over paged keys and values, with a different expert for each token.

`config` reads config.json, `rope` turns positions into angles, `layers` and `decoder` compute, `weights` loads a
Hugging Face directory, `huge_pages` asks for large pages to hold it in, and `residuals` holds the resident experts'
residuals beside the weights.
"""

from serve.model.config import ModelConfig, read_config
from serve.model.decoder import Decoder, ForwardBatch, KvCache
from serve.model.errors import ModelError
from serve.model.residuals import PackedExpert, ResidualBanks, ResidualShape
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
