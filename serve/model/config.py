"""What the decoder needs to know of a model, as values: read from config.json by the model's family."""

from dataclasses import dataclass

import torch

from kernels.decoder import HeadNorms, LayerMath
from kernels.gated import Activation
from serve.model.rope import PLAIN_ROPE, RopeConfig


@dataclass(frozen=True)
class TensorNames:
    """What a layer's modules are called in checkpoints, after `model.layers.N.`.

    Attributes:
        qkv: of queries, keys and values; one name if they are one tensor.
        output: of the attention's output projection.
        gate_up: of the MLP's gate and of what it is multiplied with; one name if they are one tensor.
        down: of the projection back to the residual stream.
        input_norm, output_norm: of the norms before and after the attention; None if the family has none.
        mlp_norm, down_norm: of the norms before and after the MLP; None if the family has none.
    """

    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    input_norm: str | None = "input_layernorm"
    output_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    down_norm: str | None = None


@dataclass(frozen=True)
class RoutedConfig:
    """A feed-forward of several gated MLPs, of which each token takes some: `num_experts` of them in config.json.

    Attributes:
        branches: how many MLPs there are.
        chosen: how many of them a token takes.
        inner: the width of each.
        renormalised: the weights of a token's MLPs sum to 1.
        router: name of the module that chooses, after `model.layers.N.`.
        gate_up, down: names of each MLP's modules, with a place for its number.
    """

    branches: int
    chosen: int
    inner: int
    renormalised: bool
    router: str = "mlp.gate"
    gate_up: tuple[str, str] = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj")
    down: str = "mlp.experts.{}.down_proj"


@dataclass(frozen=True)
class LayerConfig:
    """What one layer computes, beside the shapes that all layers share.

    Attributes:
        window: the number of most recent positions that the attention sees; None: all of them.
        rope: how positions become angles.
        attention_bias: queries, keys and values have a bias.
        output_bias: the attention's output projection has a bias.
        mlp_bias: gate, up and down have a bias.
        head_norms: whether queries and keys are RMS-normalised before the rotation: each head (Qwen3), all heads of a
            token at once (OLMo 2), or not.
        norm_offset: added to the weights of all norms (1 in Gemma).
        attention_scale: of the products of queries and keys; None: head_dim ** -0.5.
        softcap: bound of the scaled products (Gemma 2); None: they have none.
        activation: of the MLP's gate.
        residual_scale: of what the attention and the MLP add to the residual stream (Granite).
        routed: the feed-forward if it is routed (Mixtral); None: one gated MLP.
        names: of the layer's tensors, and with them which norms it has.
    """

    window: int | None = None
    rope: RopeConfig = PLAIN_ROPE
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: HeadNorms = "none"
    norm_offset: float = 0.0
    attention_scale: float | None = None
    softcap: float | None = None
    activation: Activation = "silu"
    residual_scale: float = 1.0
    routed: RoutedConfig | None = None
    names: TensorNames = TensorNames()


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder.

    Attributes:
        architecture: one of `SERVED_ARCHITECTURES`.
        layers: what each layer computes.
        embedding_scale: of what is looked up; rounded to the dtype of the weights.
        logit_divisor: what the logits are divided by.
        logit_softcap: bound of the logits; None: they have none.
        max_positions: longest sequence the model was made for.
        longest_positions: longest sequence that its rope can be stretched to.
        dtype: how the weights are stored.
        eos_token_ids: tokens that end a text.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerConfig, ...]
    rms_norm_eps: float
    tied: bool
    max_positions: int
    longest_positions: int
    dtype: torch.dtype
    eos_token_ids: tuple[int, ...]
    embedding_scale: float = 1.0
    logit_divisor: float = 1.0
    logit_softcap: float | None = None

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer."""
        return tuple(layer.window for layer in self.layers)

    @property
    def capturable(self) -> bool:
        """Whether a step can be computed without reading anything back from the device."""
        return all(layer.routed is None for layer in self.layers)

    def math(self, layer: LayerConfig) -> LayerMath:
        """What a layer computes, as the kernels need to know it."""
        scale = self.head_dim**-0.5 if layer.attention_scale is None else layer.attention_scale
        return LayerMath(
            heads=self.num_heads,
            kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            rotated=layer.rope.rotated(self.head_dim),
            eps=self.rms_norm_eps,
            norm_offset=layer.norm_offset,
            head_norms=layer.head_norms,
            attention_scale=scale,
            softcap=layer.softcap,
            activation=layer.activation,
            residual_scale=layer.residual_scale,
            feed_forward="gated" if layer.routed is None else "routed",
        )
