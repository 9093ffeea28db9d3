"""Weights of a backbone in 8 or 4 bits, as the `compressed-tensors` library stores them (format `pack-quantized`).

`scheme` says which bits and scales there are, `weights` rounds and multiplies out, `packing` puts several integers into
an int32, `files` is what a module's tensors are called and how they are read back, `settings` is `quantization_config`
in config.json.
"""

from merge.bundle.quantised.files import PACKED, PARTS, SCALE, SHAPE, packed_tensors, read_weight, stored_parts
from merge.bundle.quantised.gptq import quantise_for_output
from merge.bundle.quantised.packing import pack, unpack
from merge.bundle.quantised.scheme import INT4, INT8, SCHEMES, Scheme, is_embedding, scheme_of
from merge.bundle.quantised.settings import (
    QuantisationError,
    has_rounded_embeddings,
    read_quantisation,
    write_quantisation,
)
from merge.bundle.quantised.weights import QuantisedWeight, Rounds, least_error, quantise, recovered

__all__ = [
    "INT4",
    "INT8",
    "PACKED",
    "PARTS",
    "SCALE",
    "SCHEMES",
    "SHAPE",
    "QuantisationError",
    "QuantisedWeight",
    "Rounds",
    "Scheme",
    "has_rounded_embeddings",
    "is_embedding",
    "least_error",
    "pack",
    "packed_tensors",
    "quantise",
    "quantise_for_output",
    "read_quantisation",
    "read_weight",
    "recovered",
    "scheme_of",
    "stored_parts",
    "unpack",
    "write_quantisation",
]
