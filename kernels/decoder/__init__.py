"""All layers of a decoder in one compiled call, for steps of few tokens."""

from kernels.decoder.compiled import CompiledLayers
from kernels.decoder.layer import Layer, LinearWeights, NormWeights

__all__ = ["CompiledLayers", "Layer", "LinearWeights", "NormWeights"]
