"""The quality gate: is this a CT of a neck on which an answer can mean something? All thresholds live here."""

import dataclasses

import numpy as np

from cspine_jax.ct.series import kernel_sharpness
from cspine_jax.ct.volume import Volume

NOT_USABLE = "not usable"
"""What a note begins with that says why no answer can be trusted."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Thresholds. An error makes a study unusable, a warning does not.

    C1 to C7 takes 105 to 250 mm (RSNA 2022 masks); the challenge's spacing is 0.3 to 2.6 mm.
    """

    error_slices: int = 16
    error_extent_mm: float = 30.0
    warn_extent_mm: float = 105.0
    error_spacing_mm: float = 6.0
    warn_spacing_mm: float = 1.5
    error_pixel_mm: float = 3.0
    warn_pixel_mm: float = 1.0
    error_bone_ml: float = 2.0
    error_air_hu: float = -300.0
    warn_noise_hu: float = 80.0
    warn_metal_ml: float = 0.5
    warn_sharpness: float = 45.0
    warn_truncated: float = 0.25
    bone_hu: float = 250.0
    metal_hu: float = 3000.0
    soft_hu: tuple[float, float] = (-50.0, 150.0)
    body_hu: float = -300.0


@dataclasses.dataclass(frozen=True)
class Quality:
    """What was measured, and the verdict.

    Attributes:
        slices: in the volume.
        extent_mm: from the first to the last slice.
        spacing_mm: (z, y, x).
        gaps: uneven gaps between the stored slices.
        interpolated: slices made up between stored ones.
        tilt_degrees: gantry tilt that was taken out.
        kernel: ConvolutionKernel as the header says.
        kernel_sharpness: on the scale of `series.kernel_sharpness`; None where the header names no kernel.
        noise_hu: standard deviation of the noise in soft tissue; None where there is too little of it.
        bone_ml: volume of bone in millilitres.
        metal_ml: volume of metal (and dense enamel) in millilitres.
        contrast_agent: whether the header names one; None where the container cannot tell.
        truncated: share of the image's border that lies in the body: above 0.25 the field of view cuts it off.
        usable: no errors.
        warnings: what to keep in mind, one line each.
        errors: why the study is not usable, one line each.
    """

    slices: int
    extent_mm: float
    spacing_mm: tuple[float, float, float]
    gaps: int
    interpolated: int
    tilt_degrees: float
    kernel: str
    kernel_sharpness: float | None
    noise_hu: float | None
    bone_ml: float
    metal_ml: float
    contrast_agent: bool | None
    truncated: float
    usable: bool
    warnings: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Errors and warnings, for results that are given all the same."""
        return (*(f"{NOT_USABLE}: {error}" for error in self.errors), *self.warnings)


def assess(volume: Volume, limits: Limits = Limits()) -> Quality:
    """Measures a volume and judges it.

    Args:
        volume: as `read_study` returns it.
        limits: thresholds.

    Returns:
        Measurements and verdict; costs about a pass over the voxels.
    """
    hu, spacing = volume.hu, volume.spacing_mm
    voxel_ml = float(np.prod(spacing)) / 1000
    plan = volume.resampling
    measured = {
        "slices": volume.shape[0],
        "extent_mm": round(volume.extent_mm, 2),
        "spacing_mm": spacing,
        "gaps": len(plan.gaps) if plan else 0,
        "interpolated": int((plan.source != np.rint(plan.source)).sum()) if plan else 0,
        "tilt_degrees": round(plan.tilt_degrees, 2) if plan else 0.0,
        "kernel": volume.kernel,
        "kernel_sharpness": kernel_sharpness(volume.kernel) if volume.kernel else None,
        "noise_hu": _noise(hu, limits),
        "bone_ml": round(float((hu > limits.bone_hu).sum()) * voxel_ml, 2),
        "metal_ml": round(float((hu > limits.metal_hu).sum()) * voxel_ml, 3),
        "contrast_agent": volume.contrast_agent,
        "truncated": _truncated(hu, limits),
    }
    errors, warnings = _judge(measured, float(hu.min()), limits)
    return Quality(**measured, usable=not errors, warnings=tuple(warnings), errors=tuple(errors))


def _judge(m: dict, lowest: float, limits: Limits) -> tuple[list[str], list[str]]:
    errors, warnings = [], []
    if m["slices"] < limits.error_slices:
        errors.append(f"{m['slices']} slices, at least {limits.error_slices} are needed")
    if m["extent_mm"] < limits.error_extent_mm:
        errors.append(f"covers {m['extent_mm']:.0f} mm, at least {limits.error_extent_mm:.0f} are needed")
    elif m["extent_mm"] < limits.warn_extent_mm:
        warnings.append(f"covers {m['extent_mm']:.0f} mm; C1 to C7 takes {limits.warn_extent_mm:.0f} or more")
    if m["spacing_mm"][0] > limits.error_spacing_mm:
        errors.append(f"slices {m['spacing_mm'][0]:.2f} mm apart, at most {limits.error_spacing_mm:g} are usable")
    elif m["spacing_mm"][0] > limits.warn_spacing_mm:
        warnings.append(f"slices {m['spacing_mm'][0]:.2f} mm apart: fine fractures may fall between them")
    pixel = max(m["spacing_mm"][1:])
    if pixel > limits.error_pixel_mm:
        errors.append(f"pixels of {pixel:.2f} mm, at most {limits.error_pixel_mm:g} are usable")
    elif pixel > limits.warn_pixel_mm:
        warnings.append(f"pixels of {pixel:.2f} mm: fine fractures may not show")
    if lowest > limits.error_air_hu:
        errors.append(f"lowest value {lowest:.0f} HU: no air in it, so the HU are wrong or the image is cut")
    if m["bone_ml"] < limits.error_bone_ml:
        errors.append(
            f"{m['bone_ml']:.1f} ml of bone, at least {limits.error_bone_ml:g} in a neck; or the HU are wrong"
        )
    if m["noise_hu"] is not None and m["noise_hu"] > limits.warn_noise_hu:
        warnings.append(f"noise of {m['noise_hu']:.0f} HU")
    if m["metal_ml"] > limits.warn_metal_ml:
        warnings.append(f"{m['metal_ml']:.1f} ml of metal: streaks are likely")
    if m["kernel_sharpness"] is not None and m["kernel_sharpness"] < limits.warn_sharpness:
        warnings.append(f"soft kernel {m['kernel']}: use the bone reconstruction if there is one")
    if m["contrast_agent"]:
        warnings.append("contrast agent: bright vessels")
    if m["truncated"] > limits.warn_truncated:
        warnings.append(f"the body reaches {100 * m['truncated']:.0f}% of the image's border: field of view cut off")
    if m["interpolated"]:
        warnings.append(f"{m['interpolated']} slices interpolated across {m['gaps']} gap(s)")
    return errors, warnings


def _noise(hu: np.ndarray, limits: Limits) -> float | None:
    """Standard deviation of the noise, from differences of neighbouring slices in soft tissue; robust against edges."""
    low, high = limits.soft_hu
    differences = []
    for z in np.linspace(0, hu.shape[0] - 2, min(hu.shape[0] - 1, 24)).astype(int):
        first, second = hu[z, ::2, ::2].astype(np.int32), hu[z + 1, ::2, ::2].astype(np.int32)
        mean = (first + second) / 2
        differences.append((second - first)[(mean > low) & (mean < high)])
    values = np.concatenate(differences) if differences else np.empty(0)
    if values.size < 500:
        return None
    return round(float(np.median(np.abs(values - np.median(values)))) * 1.4826 / np.sqrt(2), 1)


def _truncated(hu: np.ndarray, limits: Limits) -> float:
    """Share of the border pixels, over all slices, that lie in the body."""
    border = np.concatenate([hu[:, 0], hu[:, -1], hu[:, :, 0], hu[:, :, -1]], axis=1)
    return round(float((border > limits.body_hu).mean()), 3)
