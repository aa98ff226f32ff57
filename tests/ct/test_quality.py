"""The gate measures what was put in, and `cspine inspect` says it."""

import dataclasses
import json

import nibabel
import numpy as np
import pytest

from cspine_jax.cli import main
from cspine_jax.ct import Volume, assess, read_study
from cspine_jax.ct.series import kernel_sharpness
from tests.ct.dicom_factory import expected_affine, make_volume, write_series


def neck(shape=(60, 64, 64), noise=20.0, seed=0) -> np.ndarray:
    """int16 [D, H, W]: soft tissue in air with a column of bone."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: shape[1], : shape[2]]
    radius = np.hypot(y - shape[1] / 2, x - shape[2] / 2)
    plane = np.where(radius < 0.42 * shape[1], 50.0, -1000.0)
    plane[radius < 0.15 * shape[1]] = 700
    return np.maximum(np.rint(plane + rng.normal(0, noise, shape)), -1024).astype(np.int16)


def volume(hu: np.ndarray, spacing=(2.0, 1.0, 1.0), **kwargs) -> Volume:
    positions = np.stack((np.zeros(len(hu)), np.zeros(len(hu)), -spacing[0] * np.arange(len(hu))), axis=1)
    return Volume(
        hu=hu,
        spacing_mm=spacing,
        affine=expected_affine(spacing),
        study_uid="1",
        series_uid="2",
        slice_numbers=np.arange(len(hu), dtype=np.int32),
        positions_mm=positions,
        **kwargs,
    )


@pytest.mark.parametrize("noise", [10.0, 40.0])
def test_a_good_neck_is_usable_and_its_noise_is_measured(noise):
    quality = assess(volume(neck(noise=noise)))
    assert quality.usable and quality.errors == ()
    assert quality.noise_hu == pytest.approx(noise, rel=0.1)
    assert quality.extent_mm == 118 and quality.slices == 60 and quality.truncated == 0
    assert quality.bone_ml == pytest.approx(np.pi * 9.6**2 * 120 / 1000, rel=0.05)
    assert volume(neck()).quality.usable


def test_metal_is_measured_in_millilitres():
    hu = neck()
    hu[20:30, 30:34, 10:20] = 12_000  # 10 x 4 x 10 voxels of 2 mm3
    quality = assess(volume(hu))
    assert quality.metal_ml == pytest.approx(0.8)
    assert quality.usable and any("metal" in note for note in quality.warnings)


def test_a_field_of_view_that_cuts_the_body_is_named():
    quality = assess(volume(np.ascontiguousarray(neck((60, 96, 96))[:, 16:-16, 16:-16])))
    assert quality.truncated > 0.4 and any("field of view" in note for note in quality.warnings)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: dataclasses.replace(v, hu=v.hu[:8]), "8 slices"),
        (lambda v: dataclasses.replace(v, affine=expected_affine((0.3, 1, 1)), spacing_mm=(0.3, 1, 1)), "covers 18 mm"),
        (lambda v: dataclasses.replace(v, spacing_mm=(7.0, 1, 1)), "7.00 mm apart"),
        (lambda v: dataclasses.replace(v, spacing_mm=(2.0, 3.5, 3.5)), "pixels of 3.50 mm"),
        (lambda v: dataclasses.replace(v, hu=np.minimum(v.hu, 200)), "ml of bone"),
        (lambda v: dataclasses.replace(v, hu=v.hu + np.int16(1024)), "no air"),
    ],
)
def test_what_no_answer_can_be_based_on_is_unusable(change, word):
    quality = assess(change(volume(neck())))
    assert not quality.usable and any(word in error for error in quality.errors), quality.errors


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: dataclasses.replace(v, kernel="B31f"), "soft kernel"),
        (lambda v: dataclasses.replace(v, contrast_agent=True), "contrast"),
        (lambda v: dataclasses.replace(v, spacing_mm=(2.5, 1.0, 1.0)), "2.50 mm apart"),
        (lambda v: dataclasses.replace(v, affine=expected_affine((1.5, 1, 1)), spacing_mm=(1.5, 1, 1)), "covers 88 mm"),
        (lambda v: dataclasses.replace(v, hu=neck(noise=120)), "noise"),
    ],
)
def test_what_makes_an_answer_less_certain_is_a_warning(change, word):
    quality = assess(change(volume(neck())))
    assert quality.usable and any(word in note for note in quality.warnings), quality.warnings


def test_kernels_are_ranked_soft_to_sharp():
    for soft, sharp in (("B31f", "B70f"), ("STANDARD", "BONE"), ("BONE", "BONEPLUS"), ("FC08", "FC30"), ("B", "YD"),
                        ("Br40d\\3", "Hr64h\\3"), ("SOFT", "EDGE")):  # fmt: skip
        assert kernel_sharpness(soft) < kernel_sharpness(sharp)


def test_inspect_prints_json_and_a_table_and_exits_0(tmp_path, capsys):
    write_series(tmp_path, neck(), spacing_mm=(2.0, 1.0, 1.0), syntax="jpeg_ls", flips=(True, False, False))
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable"] and report["slices"] == 60 and report["shape"] == [60, 64, 64]
    assert report["spacing_mm"] == [2.0, 1.0, 1.0] and report["orientation"] == "axial"
    assert report["order"] == "numbers rise towards the head" and report["codec"] == "JPEG-LS"
    assert report["errors"] == [] and report["quality"]["noise_hu"] == pytest.approx(20, rel=0.1)
    assert main(["inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "usable" in text and "JPEG-LS" in text and "118.0 mm" in text
    assert "SECRET" not in text and "Secret" not in text and "SECRET" not in json.dumps(report)


def test_inspect_exits_2_on_what_cannot_be_used(tmp_path, capsys):
    files = write_series(tmp_path, make_volume())
    assert main(["inspect", str(tmp_path)]) == 2  # 6 slices
    assert "NOT USABLE" in capsys.readouterr().out
    files[0].write_bytes(b"")
    assert main(["inspect", str(tmp_path), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert not report["usable"] and "1.dcm" in report["errors"][0]
    assert main(["inspect", str(tmp_path / "none"), "--json"]) == 2


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_nifti_volume_reads_as_the_series_it_came_from(tmp_path, suffix, dtype):
    hu = neck((20, 34, 40))
    write_series(tmp_path / "dicom", hu)
    series = read_study(tmp_path / "dicom")
    to_volume = np.array([[0, 0, -1, 19], [0, -1, 0, 33], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    ras = np.diag([-1.0, -1, 1, 1]) @ series.affine @ to_volume
    stored = hu.transpose(2, 1, 0)[:, ::-1, ::-1].astype(dtype)
    nibabel.save(nibabel.Nifti1Image(stored, ras), tmp_path / f"one{suffix}")
    converted = read_study(tmp_path / f"one{suffix}")
    np.testing.assert_array_equal(converted.hu, series.hu)
    np.testing.assert_allclose(converted.affine, series.affine, atol=1e-4)
    np.testing.assert_allclose(converted.spacing_mm, series.spacing_mm, rtol=1e-5)
    assert converted.study_uid == "one"
