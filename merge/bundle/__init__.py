"""The bundle: what merging writes and serving reads. This is the only part of `merge` that `serve` imports.

Files of a bundle:
`expert` is the file of one expert, `expert_header` its header, `residual` and `low_rank` its parts, and `quantise` and
`gaps` the 8-bit form of sparse parts. `router_model` is the part of the router that both sides must compute alike, with
its features (`ngrams`, `text_encoder`, `text_features`), its scores (`head_matrix`) and its files (`router_files`,
`encoder_files`). `manifest` is the table of contents. `writer` writes a bundle whole or not at all, and `reader` opens
one.

Model directories:
`shards` opens the weights. `end_tokens`, `chat_template`, `tokenizer` and `architectures` read what both sides must
read alike, and `generation` has the settings in which a fine-tune differs from its backbone. `adapter_config` and
`adapter_names` do the same for a LoRA directory, and `adapter` reads one as an expert.

The machine:
`tensor_file` reads files that may change in the meantime, `host_memory` has the memory that either side may take, and
`processor` the products that are fast.
"""

from merge.bundle.adapter import read_adapter, read_adapter_ranks
from merge.bundle.adapter_config import ADAPTER_CONFIG, AdapterError
from merge.bundle.adapter_names import ADAPTER_WEIGHTS
from merge.bundle.architectures import SERVED_ARCHITECTURES
from merge.bundle.chat_template import TemplateText, read_template, special_tokens
from merge.bundle.digest import backbone_digest, expert_digest
from merge.bundle.encoder_files import EncoderFiles
from merge.bundle.end_tokens import end_tokens
from merge.bundle.errors import BackboneMismatchError, BundleError, MissingFileError, UnreadableFileError
from merge.bundle.expert import Expert, read_expert, read_expert_content, write_expert
from merge.bundle.expert_header import ExpertLayout, expert_bytes, read_header, read_layout
from merge.bundle.generation import GenerationSettings, own_settings, sampling_defaults
from merge.bundle.host_cores import available_cores
from merge.bundle.host_memory import available_host_bytes
from merge.bundle.low_rank import LowRankDelta, check_low_rank
from merge.bundle.manifest import ExpertCard, FileCard, Manifest, ManifestFields
from merge.bundle.ngrams import Featurizer, SparseRow
from merge.bundle.processor import fast_bfloat16
from merge.bundle.quantise import dequantise_rows, quantise_rows
from merge.bundle.reader import Bundle, model_name, open_bundle, open_model
from merge.bundle.residual import SparseDelta, index_dtype
from merge.bundle.router_files import load_router, save_router
from merge.bundle.router_model import RouterModel
from merge.bundle.shards import model_shards, open_shard
from merge.bundle.text_encoder import TextEncoder, backbone_encoder
from merge.bundle.text_features import EncodedFeatures, TextFeatures
from merge.bundle.tokenizer import read_tokenizer
from merge.bundle.writer import BundleWriter

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "SERVED_ARCHITECTURES",
    "AdapterError",
    "BackboneMismatchError",
    "Bundle",
    "BundleError",
    "BundleWriter",
    "EncodedFeatures",
    "EncoderFiles",
    "Expert",
    "ExpertCard",
    "ExpertLayout",
    "Featurizer",
    "FileCard",
    "GenerationSettings",
    "LowRankDelta",
    "Manifest",
    "ManifestFields",
    "MissingFileError",
    "RouterModel",
    "SparseDelta",
    "SparseRow",
    "TemplateText",
    "TextEncoder",
    "TextFeatures",
    "UnreadableFileError",
    "available_cores",
    "available_host_bytes",
    "backbone_digest",
    "backbone_encoder",
    "check_low_rank",
    "dequantise_rows",
    "end_tokens",
    "expert_bytes",
    "expert_digest",
    "fast_bfloat16",
    "index_dtype",
    "load_router",
    "model_name",
    "model_shards",
    "open_bundle",
    "open_model",
    "open_shard",
    "own_settings",
    "quantise_rows",
    "read_adapter",
    "read_adapter_ranks",
    "read_expert",
    "read_expert_content",
    "read_header",
    "read_layout",
    "read_template",
    "read_tokenizer",
    "sampling_defaults",
    "save_router",
    "special_tokens",
    "write_expert",
]
