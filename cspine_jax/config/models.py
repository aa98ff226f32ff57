"""The networks of the tasks."""

import dataclasses

from cspine_jax.config.checks import at_least, between, one_of
from cspine_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network of the task.

    Slice models of document B: `type` of fracture detection is 1 (image), 2 (image + vertebra probabilities) or 3 (both
    as outputs); of vertebra detection 1 (image) or 2 (image + metadata). Segmentation in 2D: `network` is "unet2d"
    (`width` channels at full resolution, doubled `levels` times), "encoder" (a UNet on `backbone`) or "inflated"
    (`backbone`'s 2D kernels inflated to 3D).

    `pretrained` is a file of published weights for `backbone` (torchvision's or timm's state dict as .safetensors or
    .pth, or a file of `cspine weights convert`), or "imagenet" for those that a package brings: a fresh run starts from
    them.
    """

    type: int = 3
    network: str = "unet2d"
    width: int = 32
    levels: int = 4
    backbone: str = "basic_cnn"
    pretrained: str = ""
    dropout: float = 0.1
    hidden: int = 128

    def __post_init__(self):
        one_of(self, "type", (1, 2, 3))
        one_of(self, "network", ("unet2d", "encoder", "inflated"))
        at_least(self, "width", 1)
        between(self, "levels", 1, 8)
        between(self, "dropout", 0.0, 0.95)
        at_least(self, "hidden", 1)


@dataclasses.dataclass(frozen=True)
class VolumeConfig:
    """The 3D networks (tasks "spine" and "refine"): what they see, how wide they are, how training varies it.

    Volumes at `spacing_mm`; training crops of `depth` x `height` x `width` voxels, read with `margin` more on each
    side so that turning them brings no air in. `width` features at the finest of `levels` levels, doubling up to
    `max_width`; `light` spends little on the finest level. `offset_weight` is the weight of the votes for the
    vertebra's centre (task "spine"), `background_weight` that of the background in the cross-entropy.

    Strengths of the variation, 0 for off: `rotation` degrees, `zoom` and `stretch` (one axis against another) as
    fractions, `elastic_mm`; `blur_mm` in-plane, `slice_mm` thickest slices; `contrast` of soft tissue and bone as a
    fraction, `bias_hu`, `noise_hu`, `streaks` (probability of shoulder or dental streaks).
    """

    spacing_mm: float = 2.0
    depth: int = 96
    height: int = 80
    width_px: int = 80
    margin: int = 12
    width: int = 16
    levels: int = 4
    max_width: int = 128
    light: bool = False
    offset_weight: float = 1.0
    background_weight: float = 0.1
    rotation: float = 15.0
    zoom: float = 0.2
    stretch: float = 0.12
    elastic_mm: float = 5.0
    blur_mm: float = 1.0
    slice_mm: float = 4.0
    contrast: float = 0.4
    bias_hu: float = 60.0
    noise_hu: float = 90.0
    streaks: float = 0.4

    def __post_init__(self):
        if self.spacing_mm <= 0:
            raise ConfigError(f"volume.spacing_mm={self.spacing_mm}: must be above 0 mm, e.g. 2.0")
        for name in ("width", "levels", "max_width"):
            at_least(self, name, 1)
        step = 2**self.levels
        for name in ("depth", "height", "width_px"):
            at_least(self, name, step)
            if getattr(self, name) % step:
                raise ConfigError(
                    f"volume.{name}={getattr(self, name)}: must be a multiple of {step} (2 ** volume.levels)"
                )
        for name in ("margin", "offset_weight", "rotation", "elastic_mm", "blur_mm", "slice_mm", "bias_hu", "noise_hu"):
            at_least(self, name, 0)
        between(self, "background_weight", 0.001, 1.0)
        for name in ("zoom", "stretch", "contrast"):
            between(self, name, 0.0, 0.9)
        between(self, "streaks", 0.0, 1.0)
