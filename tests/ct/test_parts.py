"""A series that is no single volume: one stack of it is read and the others are named, or it is refused by name."""

import numpy as np
import pytest

from cspine_jax.ct import read_study
from cspine_jax.errors import StudyError
from tests.ct.dicom_factory import expected_affine, make_volume, to_enhanced, write_series

HU = make_volume((20, 34, 40))
OTHER = make_volume((20, 34, 40), seed=1)


def names(prefix, count=20):
    return [f"{prefix}{k}.dcm" for k in range(count)]


def setter(**values):
    def edit(dataset, index):
        for name, value in values.items():
            setattr(dataset, name, value(index) if callable(value) else value)

    return edit


def only_note(volume, *wanted) -> str:
    assert len(volume.warnings) == 1
    assert all(word in volume.warnings[0] for word in wanted), volume.warnings
    return volume.warnings[0]


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}, "AcquisitionNumber 1"),
        ({"AcquisitionUID": "1.2.3"}, {"AcquisitionUID": "1.2.4"}, "1 of 2 by AcquisitionUID"),
        ({"AcquisitionTime": "101500"}, {"AcquisitionTime": "101730"}, "AcquisitionTime"),
        ({"ContentTime": "101500"}, {"ContentTime": "101730"}, "ContentTime"),
        ({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}, "TemporalPositionIdentifier 1"),
        ({"ReconstructionDiameter": "180"}, {"ReconstructionDiameter": "200"}, "ReconstructionDiameter 180"),
        ({"KVP": "80"}, {"KVP": "140"}, "KVP"),
        ({}, {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}, "ImageType"),
        ({"NominalPercentageOfCardiacPhase": 40.0}, {"NominalPercentageOfCardiacPhase": 75.0}, "CardiacPhase"),
    ],
)
def test_two_stacks_at_one_place_are_told_apart_and_one_is_read(tmp_path, first, second, word):
    write_series(tmp_path, HU, names=names("a"), edit=setter(**first))
    write_series(tmp_path, OTHER, names=names("b"), edit=setter(**second))
    volume = read_study(tmp_path)
    only_note(volume, "2 stacks in 1 series", word, "left out series 2#")
    stacks = [read_study(tmp_path, series=f"2#{k}").hu for k in (1, 2)]
    assert any(np.array_equal(volume.hu, stack) for stack in stacks)
    for hu in (HU, OTHER):
        assert any(np.array_equal(hu, stack) for stack in stacks)


def test_the_sharper_kernel_of_a_series_with_two_is_read(tmp_path):
    write_series(tmp_path, HU, names=names("a"), edit=setter(ConvolutionKernel="B31f"))
    write_series(tmp_path, OTHER, names=names("b"), edit=setter(ConvolutionKernel="B70f"))
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, OTHER)
    only_note(volume, "kernel B31f")


def test_a_gated_series_of_phases_times_kernels(tmp_path):
    for phase in range(3):
        for kernel in ("B31f", "B70f"):
            edit = setter(TemporalPositionIdentifier=phase, ConvolutionKernel=kernel)
            write_series(tmp_path, HU + 100 * phase, names=names(f"{phase}{kernel}"), edit=edit, bits=(16, 13))
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    only_note(volume, "6 stacks in 1 series")


def test_bolus_tracking_images_beside_the_stack_are_left_out(tmp_path):
    write_series(tmp_path, HU, edit=setter(AcquisitionNumber=2))
    place = np.array([[-80.0, -100, 60 - 5 * 0.625]] * 4)
    write_series(tmp_path, OTHER[:4], names=names("b", 4), positions=place, edit=setter(AcquisitionNumber=1))
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    only_note(volume, "4 slices", "AcquisitionNumber 1")


def test_what_nothing_tells_apart_is_refused(tmp_path):
    write_series(tmp_path, HU, names=names("a"), edit=setter(ContentTime=lambda k: f"1015{k:02d}"))
    write_series(tmp_path, OTHER, names=names("b"), edit=setter(ContentTime=lambda k: f"1016{k:02d}"))
    with pytest.raises(StudyError, match="other pixels"):
        read_study(tmp_path)


def test_two_acquisitions_that_meet_are_one_stack(tmp_path):
    write_series(tmp_path, HU[:9], edit=setter(AcquisitionNumber=1))
    write_series(
        tmp_path, HU[9:], names=names("b", 11), origin=(-80, -100, 60 - 9 * 0.625), edit=setter(AcquisitionNumber=2)
    )
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.warnings == ()


@pytest.mark.parametrize("axes", [(2, 0, 1), (1, 0, 2)])
def test_reformats_under_the_series_of_the_axial_images_are_left_out(tmp_path, axes):
    write_series(tmp_path, HU)
    write_series(tmp_path, HU, axes=axes, names=names("r", HU.shape[axes[0]]))
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-5)
    only_note(volume, "2 stacks in 1 series", "not axial")


def test_two_matrix_sizes_in_a_series(tmp_path):
    write_series(tmp_path, HU)
    small = HU[::4, ::2, ::2]
    write_series(tmp_path, small, spacing_mm=(2.5, 0.9, 0.8), names=names("s", len(small)))
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    only_note(volume, "34 x 40 pixels", "17 x 20 pixels")
    np.testing.assert_array_equal(read_study(tmp_path, series="2#2").hu, small)


def test_two_pixel_sizes_in_a_series(tmp_path):
    write_series(tmp_path, HU)
    write_series(tmp_path, OTHER, spacing_mm=(0.625, 0.9, 0.8), origin=(-90, -110, 60), names=names("s"))
    np.testing.assert_array_equal(read_study(tmp_path).hu, HU)


@pytest.mark.parametrize("gap", [5, 17])
def test_a_neck_and_a_thorax_of_thick_slices_in_a_series(tmp_path, gap):
    neck = make_volume((60, 34, 40))
    write_series(tmp_path, neck)
    below = 60 - 59 * 0.625 - gap
    write_series(tmp_path, OTHER, spacing_mm=(5, 0.45, 0.4), origin=(-80, -100, below), names=names("t"))
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, neck)
    np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-5)
    only_note(volume, "block 1 of 2", "5 mm")
    thorax = read_study(tmp_path, series="2#2")
    np.testing.assert_array_equal(thorax.hu, OTHER)
    assert thorax.spacing_mm[0] == pytest.approx(5)


def test_a_neck_and_a_thorax_that_overlap_are_told_apart_by_their_acquisition(tmp_path):
    neck = make_volume((60, 34, 40))
    write_series(tmp_path, neck, edit=setter(AcquisitionNumber=1))
    write_series(tmp_path, OTHER, spacing_mm=(5, 0.45, 0.4), origin=(-80, -100, 40.11), names=names("t"),
                 edit=setter(AcquisitionNumber=2))  # fmt: skip
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, neck)
    only_note(volume, "AcquisitionNumber 2")


def test_blocks_far_apart_are_not_bridged(tmp_path):
    long = make_volume((50, 34, 40))
    write_series(tmp_path, long)
    write_series(tmp_path, OTHER, origin=(-80, -100, -60), names=names("t"))
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, long)
    only_note(volume, "block", "20 slices")


def test_a_few_missing_slices_are_still_bridged(tmp_path):
    hu = make_volume((60, 34, 40))
    for k, file in enumerate(write_series(tmp_path, hu)):
        if k in (7, 8, 20, 22, 24, 26, 40):
            file.unlink()
    volume = read_study(tmp_path)
    assert volume.shape == hu.shape and sum("uneven" in note for note in volume.warnings) == 6


def test_a_short_thin_stack_does_not_win_over_a_whole_neck(tmp_path):
    neck = make_volume((60, 34, 40))
    write_series(tmp_path / "neck", neck)
    write_series(tmp_path / "test", HU[:5], spacing_mm=(0.3, 0.45, 0.4), series_uid="1.2.9")
    np.testing.assert_array_equal(read_study(tmp_path).hu, neck)


def test_a_series_of_its_own_for_each_image_is_read_on_request(tmp_path):
    for k in range(20):
        write_series(tmp_path / f"{k}", HU[k : k + 1], origin=(-80, -100, 60 - 0.625 * k), series_uid=f"1.2.9.{k}")
    with pytest.raises(StudyError, match=r"20 series of 1 slice each.*series=all"):
        read_study(tmp_path)
    np.testing.assert_array_equal(read_study(tmp_path, series="all").hu, HU)


def test_stacks_of_a_multi_frame_image(tmp_path):
    files = write_series(tmp_path / "a", HU) + write_series(tmp_path / "b", OTHER, names=names("b"))
    to_enhanced(files, tmp_path / "multi", stacks=["1"] * 20 + ["2"] * 20)
    volume = read_study(tmp_path / "multi")
    np.testing.assert_array_equal(volume.hu, HU)
    only_note(volume, "2 stacks in 1 series", "StackID")
    second = read_study(tmp_path / "multi", series="2#2")
    np.testing.assert_array_equal(second.hu, OTHER)
    np.testing.assert_array_equal(second.slice_numbers, np.arange(21, 41))


@pytest.mark.parametrize(
    "kind", [["DERIVED", "SECONDARY", "SCREEN SAVE"], ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"]]
)
def test_reports_stored_as_ct_images_are_left_out(tmp_path, kind):
    write_series(tmp_path, HU)
    write_series(tmp_path, make_volume((1, 60, 80)), names=["report.dcm"], edit=setter(ImageType=kind))
    volume = read_study(tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    only_note(volume, "1 screen or dose report(s)", "report.dcm")


@pytest.mark.parametrize("thinner", [False, True])
def test_a_stretch_with_every_other_slice_missing_is_bridged_unless_its_slices_are_thicker(tmp_path, thinner):
    hu = make_volume((60, 34, 40))

    def edit(dataset, index):
        dataset.SliceThickness = "0.625" if thinner and index < 30 else "1.25"

    for k, file in enumerate(write_series(tmp_path, hu, edit=edit)):
        if k > 30 and k % 2:
            file.unlink()
    volume = read_study(tmp_path)
    if thinner:
        np.testing.assert_array_equal(volume.hu, hu[:31])
        only_note(volume, "block 1 of 2", "1.25 mm")
    else:
        assert volume.shape[0] == 59 and any("interpolated" in note for note in volume.warnings)
        np.testing.assert_array_equal(volume.hu[:31], hu[:31])
