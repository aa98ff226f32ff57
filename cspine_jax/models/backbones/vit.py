"""Vision Transformer (Dosovitskiy et al. 2021), as torchvision builds it: patches of 16x16 pixels and a class token.

Normalisation eps 1e-6; initial weights as torchvision's. The learned positions are those of a 224x224 image (14x14
patches). Other images are padded with zeros at the far edges to whole patches, and the positions of the patches
resized to theirs: bicubic (Keys' a = -1/2), half-pixel centres, antialiased, as timm does with `dynamic_img_size`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from cspine_jax.models.attention import EncoderBlock, SelfAttention
from cspine_jax.models.backbones.base import OWN, Backbone, Options, linear_rates, run_blocks
from cspine_jax.models.layers import Conv, LayerNorm, at_least_float32

EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Config:
    """Size of the transformer.

    Attributes:
        blocks: of the encoder.
        width: channels of a token.
        heads: of attention.
        hidden: width inside the MLPs.
        patch: pixels of one side of a patch.
        grid: patches of one side of the image that the positions were learned for.
    """

    blocks: int
    width: int
    heads: int
    hidden: int
    patch: int = 16
    grid: int = 14
    pooling: str = OWN
    dropout: float = 0.0
    drop_path: float = 0.0


NAMES = {
    "torchvision": (
        (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
        (r"\.attn\.proj\.", ".self_attention.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
        (r"^pos_embedding$", "encoder.pos_embedding"),
        (r"^norm\.", "encoder.ln."),
        (r"^head\.", "heads.head."),
    ),
    "timm": (
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^class_token$", "cls_token"),
        (r"^pos_embedding$", "pos_embed"),
    ),
}
"""Rules from this module's parameter names to those of state dicts, see `pretrained.torch_name`."""

VARIANTS: dict[str, Config] = {"vit_b_16": Config(blocks=12, width=768, heads=12, hidden=3072)}


def resized_positions(positions: jax.Array, grid: int, size: tuple[int, int]) -> jax.Array:
    """Position embeddings for another grid of patches.

    Args:
        positions: `[1 + grid^2, C]`, that of the class token first.
        grid: patches of one side when they were learned.
        size: (h, w), the patches there are now.

    Returns:
        `[1 + h w, C]`; that of the class token is unchanged.
    """
    if size == (grid, grid):
        return positions
    features = positions.shape[-1]
    learned = positions[1:].reshape(grid, grid, features)
    patches = jax.image.resize(learned, (*size, features), "bicubic", antialias=True)
    return jnp.concatenate([positions[:1], patches.reshape(-1, features)])


class VisionTransformer(Backbone):
    """The pyramid is one map of 16 pixels a cell; the family's own embedding is the class token."""

    def __init__(self, config: Config, options: Options):
        layer, width = options.layer, config.width
        self.patch, self.grid, self.drop_path = config.patch, config.grid, options.drop_path
        self.conv_proj = Conv(
            options.in_channels,
            width,
            config.patch,
            stride=config.patch,
            padding=0,
            bias=True,
            kernel_init=nnx.initializers.variance_scaling(1.0, "fan_in", "normal"),
            **layer,
        )
        self.class_token = nnx.Param(jnp.zeros((width,), jnp.float32))
        positions = (1 + config.grid**2, width)
        self.pos_embedding = nnx.Param(nnx.initializers.normal(0.02)(options.rngs.params(), positions, jnp.float32))
        self.blocks = nnx.List(
            [
                EncoderBlock(SelfAttention(width, config.heads, **layer), width, config.hidden, eps=EPS, **layer)
                for _ in range(config.blocks)
            ]
        )
        self.norm = LayerNorm(width, eps=EPS, dtype=options.dtype)
        self._finish((width,), (config.patch,), options, width, head_init=nnx.initializers.zeros_init())

    def _tokens(self, x: jax.Array, train: bool, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Class token `[B, C]` and patches `[B, h, w, C]` after the last normalisation."""
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % self.patch), (0, -x.shape[2] % self.patch), (0, 0)))
        x = self.conv_proj(x)
        b, h, w, c = x.shape
        token = jnp.broadcast_to(self.class_token[...].astype(x.dtype)[None, None], (b, 1, c))
        positions = resized_positions(self.pos_embedding[...], self.grid, (h, w))
        x = jnp.concatenate([token, x.reshape(b, h * w, c)], axis=1) + positions.astype(x.dtype)[None]
        x = run_blocks(self.blocks, x, train, linear_rates(self.drop_path, len(self.blocks), reached=True), key)
        x = self.norm(x)
        return x[:, 0], x[:, 1:].reshape(b, h, w, c)

    def pyramid(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> list[jax.Array]:
        """The patches' tokens `[B, ceil(H / 16), ceil(W / 16), C]` of `[B, H, W, in]`."""
        return [self._tokens(x, train, key)[1]]

    def embed(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Float32 `[B, embedding_dim]`: the class token, or the patches pooled."""
        if self.pooling != OWN:
            return super().embed(x, train, key)
        token = self._tokens(x, train, key)[0]
        return token.astype(at_least_float32(token))


build = VisionTransformer
