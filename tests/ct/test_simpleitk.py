"""Against SimpleITK: identical where it is right; where it is not, ours against the truth with its error beside it."""

import dataclasses
import itertools

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (as everybody calls it)

from cspine_jax.ct import Volume, read_study
from cspine_jax.phantom.dataset import write_dataset
from tests.ct.dicom_factory import SYNTAXES, make_volume, write_series
from tests.ct.test_geometry import regular_positions, smooth, truth

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it warns of uneven spacing on stderr, and reads on


def read_itk(folder) -> tuple[np.ndarray, np.ndarray]:
    """SimpleITK's array [k, j, i] and affine [4, 4] that maps (k, j, i, 1) to LPS mm, as its own geometry says."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, :3], affine[:3, 3] = directions[:, ::-1], image.GetOrigin()
    return sitk.GetArrayFromImage(image), affine


def check_identical(volume: Volume, array: np.ndarray, affine: np.ndarray) -> None:
    """The same HU at the same places: only the order of the axes and their directions may differ."""
    to_ours = np.linalg.inv(volume.affine) @ affine  # SimpleITK's index -> ours
    whole = np.rint(to_ours)
    np.testing.assert_allclose(to_ours, whole, atol=1e-3)
    assert (np.abs(whole[:3, :3]).sum(0) == 1).all() and (np.abs(whole[:3, :3]).sum(1) == 1).all()
    order = np.abs(whole[:3, :3]).argmax(0)  # our axis for each of SimpleITK's
    ours = volume.hu.transpose(order)
    for axis, ours_axis in enumerate(order):
        if whole[ours_axis, axis] < 0:
            ours = np.flip(ours, axis)
            assert whole[ours_axis, 3] == ours.shape[axis] - 1
        else:
            assert whole[ours_axis, 3] == 0
    np.testing.assert_array_equal(ours, np.rint(array))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_codecs(tmp_path, syntax):
    write_series(tmp_path, make_volume(), syntax=syntax)
    check_identical(read_study(tmp_path), *read_itk(tmp_path))


FLIPS = ((False, False, False), (True, False, False), (False, True, False), (False, False, True), (True, True, True))


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_orientations(tmp_path, axes):
    for number, flips in enumerate(FLIPS):
        write_series(tmp_path / str(number), make_volume((10, 14, 12)), axes=axes, flips=flips)
        check_identical(read_study(tmp_path / str(number)), *read_itk(tmp_path / str(number)))


@pytest.mark.parametrize("degrees", [4.0, 11.0, -25.0])
def test_oblique_patients(tmp_path, degrees):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    about_z = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    write_series(tmp_path, make_volume((12, 34, 40)), rotation=about_z @ about_x)
    check_identical(read_study(tmp_path), *read_itk(tmp_path))


@pytest.mark.parametrize(
    "pixels",
    [
        {"signed": True, "intercept": 0, "bits": (16, 13)},
        {"signed": True, "bits": (16, 16)},
        {"intercept": -8192, "bits": (16, 14)},
        {"slope": 0.5, "bits": (16, 16)},
        {"slope": 10, "bits": (8, 8), "spacing_mm": (3.0, 0.7, 0.3)},
    ],
)
def test_pixels(tmp_path, pixels):
    write_series(tmp_path, make_volume(), **pixels)
    check_identical(read_study(tmp_path), *read_itk(tmp_path))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Folders of small phantom studies."""
    folder = tmp_path_factory.mktemp("phantom")
    write_dataset(folder, 3, seed=5, size=40, scale=0.25, codec="mixed", workers=1)
    return sorted((folder / "train_images").iterdir())


def test_phantoms(phantom):
    for folder in phantom:
        array, affine = read_itk(folder)
        outside = array < -1500  # padding outside the field of view, which is air here
        check_identical(read_study(folder), np.where(outside, -1024, array), affine)


@dataclasses.dataclass
class Error:
    """Of one reader: HU against the truth at the place where its own geometry puts each voxel."""

    mean: float
    most: float

    def __str__(self):
        return f"mean {self.mean:7.2f}, most {self.most:7.1f} HU"


def errors(hu: np.ndarray, affine: np.ndarray, where: np.ndarray) -> Error:
    """HU against `truth` of the place, over the voxels `where`."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in hu.shape), indexing="ij"), axis=-1)
    place = index @ affine[:3, :3].T + affine[:3, 3]
    off = np.abs(hu - truth(60 - place[..., 2], place[..., 1] + 100, place[..., 0] + 80))[where]
    return Error(float(off.mean()), float(off.max()))


def report(case: str, ours: Error, theirs: Error, displaced: float) -> None:
    print(f"\n{case:28s} ours {ours};  SimpleITK {theirs}, slices up to {displaced:.2f} mm from their place")


@pytest.mark.parametrize("degrees", [-18.0, 12.0, 25.0])
def test_a_tilted_gantry(tmp_path, degrees):
    angle = np.radians(degrees)
    down = np.array([0, np.cos(angle), np.sin(angle)])
    positions = np.array([[-80, -100, 60 - 0.8 * k] for k in range(30)])
    rows, columns = np.meshgrid(np.arange(48) * 0.45, np.arange(44) * 0.4, indexing="ij")
    places = positions[:, None, None] + rows[..., None] * down + columns[..., None] * np.array([1, 0, 0])
    stored = np.rint(truth(60 - places[..., 2], places[..., 1] + 100, places[..., 0] + 80)).astype(np.int16)

    def tilt(dataset, index):
        dataset.ImageOrientationPatient = ["1", "0", "0", *(f"{value:.9f}" for value in down)]

    write_series(tmp_path, stored, positions=positions, edit=tilt)
    volume = read_study(tmp_path)
    inside = volume.hu > -200
    ours = errors(volume.hu, volume.affine, interior(inside))
    array, affine = read_itk(tmp_path)
    theirs = errors(array, affine, np.ones(array.shape, bool))
    claimed = np.array([affine[:3, 3] + affine[:3, 0] * k for k in range(len(array))])
    displaced = float(np.linalg.norm(claimed - positions[::-1], axis=1).max())
    report(f"gantry tilt {degrees:+.0f} degrees", ours, theirs, displaced)
    assert ours.most < 1.5  # linear interpolation within the slice, and rounding
    assert theirs.most > 10 * ours.most and displaced > 3


def interior(inside: np.ndarray) -> np.ndarray:
    """Without the first and last row of each slice, which repeat their neighbour."""
    core = np.zeros_like(inside)
    core[:, 1:-1] = inside[:, :-2] & inside[:, 1:-1] & inside[:, 2:]
    return core


def test_a_table_that_rose(tmp_path):
    positions = regular_positions(40)
    positions[:, 1] += 0.3 * np.arange(40)
    z, y, x = 60 - positions[:, 2], np.arange(48) * 0.45, np.arange(44) * 0.4
    below = positions[:, 1] + 100
    stored = truth(z[:, None, None], below[:, None, None] + y[None, :, None], x[None, None, :])
    write_series(tmp_path, np.rint(stored).astype(np.int16), positions=positions)
    volume = read_study(tmp_path)
    ours = errors(volume.hu, volume.affine, interior(volume.hu > -200))
    array, affine = read_itk(tmp_path)
    theirs = errors(array, affine, np.ones(array.shape, bool))
    claimed = np.array([affine[:3, 3] + affine[:3, 0] * k for k in range(40)])
    displaced = float(np.linalg.norm(claimed - positions[::-1], axis=1).max())
    report("table rises 0.3 mm a slice", ours, theirs, displaced)
    assert ours.most < 1.5 and theirs.most > 10 * ours.most


@pytest.mark.parametrize(
    ("case", "lost", "bound"),
    # Between slices h apart linear interpolation is off by h^2 / 8 x the second derivative, below 1.3 HU/mm2.
    [("2 of 40 slices missing", (11, 12), 0.7), ("10 of 40 slices missing", tuple(range(20, 30)), 8.0)],
)
def test_missing_slices(tmp_path, case, lost, bound):
    files = write_series(tmp_path, smooth())
    for index in lost:
        files[index].unlink()
    check_uneven(tmp_path, case, np.delete(regular_positions(40), lost, axis=0), bound)


def test_one_odd_gap(tmp_path):
    positions = regular_positions(40)
    positions[20:, 2] -= 1.5
    y, x = np.arange(48) * 0.45, np.arange(44) * 0.4
    stored = truth((60 - positions[:, 2])[:, None, None], y[None, :, None], x[None, None, :])
    write_series(tmp_path, np.rint(stored).astype(np.int16), positions=positions)
    check_uneven(tmp_path, "one gap of 2.125 for 0.625 mm", positions, 0.8)


def check_uneven(folder, case: str, positions: np.ndarray, bound: float) -> None:
    volume = read_study(folder)
    ours = errors(volume.hu, volume.affine, np.ones(volume.shape, bool))
    array, affine = read_itk(folder)
    theirs = errors(array, affine, np.ones(array.shape, bool))
    claimed = np.array([affine[:3, 3] + affine[:3, 0] * k for k in range(len(array))])
    displaced = float(np.linalg.norm(claimed - positions[::-1], axis=1).max())
    report(case, ours, theirs, displaced)
    assert ours.most < bound + 1  # rounded when stored and when resampled
    assert theirs.mean > 4 * ours.mean and displaced > 0.5


def test_a_phantom_with_a_gap(phantom, tmp_path):
    """The truth is the whole study as scanned: kept slices are exact, and missing ones near their neighbours' mean."""
    folder = next(path for path in phantom if not read_study(path).warnings)  # no padding
    whole = read_study(folder)
    files = {int(path.stem): path for path in folder.iterdir()}
    lost = range(20, 26)
    for row, number in enumerate(whole.slice_numbers):
        if row not in lost:
            (tmp_path / f"{number}.dcm").write_bytes(files[number].read_bytes())
    volume = read_study(tmp_path)
    assert volume.shape == whole.shape
    kept = np.array([row not in lost for row in range(len(whole.hu))])
    np.testing.assert_array_equal(volume.hu[kept], whole.hu[kept])
    ours = np.abs(volume.hu - whole.hu.astype(float))
    array, affine = read_itk(tmp_path)
    to_ours = np.linalg.inv(whole.affine) @ affine
    rows = np.clip(np.rint(to_ours[0, 0] * np.arange(len(array)) + to_ours[0, 3]).astype(int), 0, len(whole.hu) - 1)
    theirs = np.abs(array - whole.hu[rows].astype(float))
    claimed = to_ours[0, 0] * np.arange(len(array))[::-1] + to_ours[0, 3]
    displaced = float(np.abs(claimed - np.flatnonzero(kept)).max()) * whole.spacing_mm[0]
    report("phantom, 6 slices missing", Error(ours.mean(), ours.max()), Error(theirs.mean(), theirs.max()), displaced)
    assert theirs.mean() > 4 * ours.mean()
