"""All layers of a decoder in one compiled call, for steps of few tokens."""

from kernels.decoder.compiled import CompiledLayers
from kernels.decoder.layer import Layer, LinearWeights, NormWeights
from kernels.decoder.math import HeadNorms, LayerMath, not_compiled

__all__ = ["CompiledLayers", "HeadNorms", "Layer", "LayerMath", "LinearWeights", "NormWeights", "not_compiled"]
