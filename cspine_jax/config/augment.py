"""What happens to an image on the device before the network sees it."""

import dataclasses

from cspine_jax.config.checks import at_least, between, one_of
from cspine_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """CT window and augmentation, all on the device.

    `crop` is the share of each side that the model sees, about the centre (a neck scan is mostly air and shoulders).
    Window in HU; rotation in degrees; `zoom` and `shift` as fractions; brightness, contrast and noise on the windowed
    0..1 scale; `mixup` is the Beta(a, a) parameter, 0 for off, and `mixup_share` the share of
    examples that are blended. Document B's saturation and hue act on nothing in a
    one-channel CT image and are left out on purpose.

    `denoise` is document B's noise reduction, on the windowed image: "threshold" makes what is darker than
    `background_hu` background; "kmeans" finds that threshold for each stack of slices (of a sequence: at each
    position), between the darkest two of `denoise_clusters` clusters of its intensities.

    For every task: `distortion` moves the nodes of a coarse grid by up to that share of its cells, `blur` is the
    largest sigma of a Gaussian in pixels, `vertical_flip` and `transpose` act on half of the images each. For sequences
    (tasks "crops" and "study"): `cutout` blanks a box of up to that share of a side in half of them, the same in all
    slices, `slice_shuffle` is the share of sequences whose slices are put in random order, and `bone_only` the share in
    which nothing but the bone of the mask is shown, so that breaks are learnt where swelling would tell.
    """

    window_level: float = 400.0
    window_width: float = 1800.0
    crop: float = 1.0
    flip: bool = True
    rotation: float = 10.0
    zoom: float = 0.1
    shift: float = 0.04
    brightness: float = 0.08
    contrast: float = 0.15
    noise: float = 0.02
    mixup: float = 0.0
    mixup_share: float = 1.0
    vertical_flip: bool = False
    transpose: bool = False
    distortion: float = 0.0
    blur: float = 0.0
    cutout: float = 0.0
    slice_shuffle: float = 0.0
    bone_only: float = 0.0
    denoise: str = "none"
    background_hu: float = -300.0
    denoise_clusters: int = 4

    def __post_init__(self):
        if self.window_width <= 0:
            raise ConfigError(f"augment.window_width={self.window_width}: must be above 0 HU, e.g. 1800 for bone")
        for name in ("rotation", "zoom", "shift", "brightness", "contrast", "noise", "mixup"):
            at_least(self, name, 0)
        between(self, "zoom", 0.0, 0.9)
        between(self, "crop", 0.1, 1.0)
        between(self, "distortion", 0.0, 0.5)
        between(self, "blur", 0.0, 5.0)
        between(self, "cutout", 0.0, 1.0)
        between(self, "slice_shuffle", 0.0, 1.0)
        between(self, "bone_only", 0.0, 1.0)
        between(self, "mixup_share", 0.0, 1.0)
        one_of(self, "denoise", ("none", "threshold", "kmeans"))
        between(self, "denoise_clusters", 2, 16)
