"""One phantom study written in a hundred ways, each with what reading it must give.

`python -m tests.ct.ways` writes and reads them all and counts: exact (every voxel and the affine), bounded (within a
stated bound) and refused (a `StudyError` that names the fault).
"""

import collections
import dataclasses
import functools
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.uid import MRImageStorage, SecondaryCaptureImageStorage

from cspine_jax.ct import Volume, read_study
from cspine_jax.errors import StudyError
from cspine_jax.phantom.sample import sample_study
from cspine_jax.phantom.scanner import scan
from cspine_jax.phantom.scene import render
from tests.ct.dicom_factory import SYNTAXES, expected_affine, to_enhanced, write_series

SPACING = (0.625, 0.45, 0.4)
ORIGIN = (-80.0, -100.0, 60.0)


@functools.cache
def phantom() -> np.ndarray:
    """int16 [20, 40, 44]: a neck at low resolution; a bright block marks the patient's upper left front corner."""
    plan = sample_study(0, 0, size=64, scale=0.25)
    hu = np.ascontiguousarray(scan(render(plan), plan)[40:60, 12:52, 10:54])
    np.clip(hu, -1005, 3000, out=hu)
    hu[:, :3], hu[:, -3:], hu[:, :, :3], hu[:, :, -3:] = -1000, -1000, -1000, -1000
    hu[:2, 3:7, -8:-3] = 1200
    hu.setflags(write=False)
    return hu


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of writing the phantom.

    Attributes:
        name: what is done to it.
        write: writes it into an empty folder; returns what to read.
        bound: what a result that is not exact is held to, in words; checked by `check`.
        refused: pattern of the refusal; "" where it must be read.
        warned: pattern of a warning that must be there.
        check: of the volume; every voxel and the affine unless it says otherwise.
        options: of `read_study`.
    """

    name: str
    write: Callable[[Path], Path | None]
    bound: str = ""
    refused: str = ""
    warned: str = ""
    check: Callable[[Volume], None] | None = None
    options: dict = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What reading it must come to."""
        return "refused" if self.refused else "bounded" if self.bound else "exact"

    def run(self, folder: Path) -> str:
        """Writes, reads and checks it; returns `kind`."""
        path = self.write(folder) or folder
        try:
            volume = read_study(path, **self.options)
        except StudyError as error:
            message = str(error)
            assert self.refused and re.search(self.refused, message), f"{self.name}: {message}"
            assert "\n" not in message and "SECRET" not in message.upper()
            return "refused"
        assert not self.refused, f"{self.name}: read, but must be refused"
        (self.check or exactly())(volume)
        assert not self.warned or any(re.search(self.warned, note) for note in volume.warnings), volume.warnings
        return self.kind


def exactly(hu=None, spacing=SPACING, origin=ORIGIN, turn=None, placed=True) -> Callable[[Volume], None]:
    """Every voxel, the spacing and the affine; and the marker is at the patient's left, front and top."""

    def check(volume: Volume) -> None:
        truth = phantom() if hu is None else hu()
        np.testing.assert_array_equal(volume.hu, truth)
        np.testing.assert_allclose(volume.spacing_mm, spacing, rtol=1e-4)
        affine = expected_affine(spacing, origin)
        if turn is not None:
            affine[:3] = turn @ affine[:3]
        if placed:
            np.testing.assert_allclose(volume.affine, affine, atol=2e-3)
        marker = np.argwhere(volume.hu[:6] == 1200).mean(axis=0) - (np.array(volume.shape) - 1) / 2
        assert marker[0] < 0 and marker[1] < 0 and marker[2] > 0
        toward = volume.affine[:3, :3] @ marker  # LPS: left, back, head
        assert toward[0] > 0 and toward[1] < 0 and toward[2] > 0

    return check


def within(limit: float, hu=None) -> Callable[[Volume], None]:
    """Every voxel to so many HU, at the right place."""

    def check(volume: Volume) -> None:
        truth = phantom() if hu is None else hu()
        assert np.abs(volume.hu.astype(int) - truth).max() <= limit
        np.testing.assert_allclose(volume.affine, expected_affine(), atol=2e-3)

    return check


def series(**kwargs) -> Callable[[Path], None]:
    """Writes the phantom as `write_series` does with these arguments."""
    return lambda folder: [write_series(folder / "study", phantom(), **kwargs), None][1]


def setting(index=None, remove=(), **values):
    """An `edit` that sets (or removes) elements, of one slice or of all."""

    def edit(dataset, k):
        if index is None or k in np.atleast_1d(index):
            for name in remove:
                if name in dataset:
                    del dataset[name]
            for name, value in values.items():
                setattr(dataset, name, value(k) if callable(value) else value)

    return edit


N = 20
_SHUFFLED = (np.random.default_rng(5).permutation(N) + 1).tolist()
_LETTERS = [f"IM{chr(65 + k // 26)}{chr(65 + k % 26)}" for k in range(N)]


def _orders() -> list[Way]:
    return [
        Way("slices from head to feet", series()),
        Way("slices from feet to head", series(flips=(True, False, False))),
        Way("file names and numbers shuffled", series(numbers=_SHUFFLED)),
        Way("file names of letters", series(names=_LETTERS)),
        Way("file names without suffix", series(names=[f"{k}" for k in range(N)])),
        Way("file names that start at 41", series(names=[f"{k + 41}.dcm" for k in range(N)])),
        Way("InstanceNumber all equal", series(numbers=[1] * N, names=_LETTERS)),
        Way("InstanceNumber absent", series(edit=setting(remove=["InstanceNumber"]))),
        Way("InstanceNumber against the positions", series(numbers=range(N, 0, -1), names=_LETTERS)),
    ]


_POSITIONS = {  # stack axes (slice, row, column) and which are reversed
    "HFS": ((0, 1, 2), (False, False, False)),
    "HFP": ((0, 1, 2), (False, True, True)),
    "FFS": ((0, 1, 2), (True, False, True)),
    "FFP": ((0, 1, 2), (True, True, False)),
    "HFDR": ((0, 2, 1), (False, False, True)),
    "HFDL": ((0, 2, 1), (False, True, False)),
    "FFDR": ((0, 2, 1), (True, True, True)),
    "FFDL": ((0, 2, 1), (True, False, False)),
}


def _rotation(axis: int, degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    turn = np.eye(3)
    i, j = [k for k in range(3) if k != axis]
    turn[i, i] = turn[j, j] = np.cos(angle)
    turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
    return turn


def _orientations() -> list[Way]:
    ways = [
        Way(f"patient position {name}", series(axes=axes, flips=flips, edit=setting(PatientPosition=name)))
        for name, (axes, flips) in _POSITIONS.items()
    ]
    planes = {"sagittal": (2, 0, 1), "coronal": (1, 0, 2), "sagittal, rows along the neck": (2, 1, 0)}
    ways += [
        Way(f"{name}{', reversed' if flip else ''}", series(axes=axes, flips=(flip, flip, False)), warned="axially")
        for name, axes in planes.items()
        for flip in (False, True)
    ]
    turns = {"12 degrees about z": _rotation(2, 12), "20 degrees about x": _rotation(0, 20)}
    turns["double oblique"] = _rotation(2, 9) @ _rotation(0, -14)
    ways += [
        Way(f"oblique, {name}", series(rotation=turn), check=exactly(turn=turn), warned="oblique")
        for name, turn in turns.items()
    ]
    turn = _rotation(0, 20)
    ways.append(Way("oblique sagittal", series(rotation=turn, axes=(2, 0, 1)), check=exactly(turn=turn)))
    return ways


def _pixels() -> list[Way]:
    ways = [Way(f"codec {syntax}", series(syntax=syntax)) for syntax in SYNTAXES]
    ways += [
        Way(f"{name} pixels", series(**kwargs))
        for name, kwargs in {
            "signed 16-bit": {"signed": True, "intercept": 0, "bits": (16, 16)},
            "signed 13-bit": {"signed": True, "intercept": 0, "bits": (16, 13)},
            "signed with an intercept": {"signed": True, "intercept": -1024, "bits": (16, 16)},
            "14-bit, intercept -8192,": {"intercept": -8192, "bits": (16, 14)},
            "32-bit": {"signed": True, "intercept": 0, "bits": (32, 32)},
            "signed JPEG-LS": {"signed": True, "intercept": 0, "bits": (16, 16), "syntax": "jpeg_ls"},
            "signed RLE": {"signed": True, "intercept": 0, "bits": (16, 16), "syntax": "rle"},
            "half-step": {"slope": 0.5, "intercept": -1024, "bits": (16, 14)},
            "negative-slope": {"slope": -1, "intercept": 3071},
        }.items()
    ]
    signed = {"signed": True, "intercept": 0, "bits": (16, 16)}
    return [
        *ways,
        Way("signed pixels declared unsigned", series(**signed, edit=setting(PixelRepresentation=0)), warned="signed"),
        Way("old overlays above the stored bits", series(edit=_overlay)),
        Way("rescale that differs from slice to slice", _mixed(intercept=-1100, bits=(16, 13))),
        Way("two codecs in a series", _mixed(syntax="jpeg_ls")),
        Way("MONOCHROME1", series(edit=setting(PhotometricInterpretation="MONOCHROME1"))),
        Way("MONOCHROME1 with inverted pixels", series(edit=_invert), warned="MONOCHROME1"),
        Way("no PhotometricInterpretation", series(edit=setting(remove=["PhotometricInterpretation"]))),
        Way("8-bit pixels, 16 HU a step", series(slope=16, bits=(8, 8)), bound="half a step", check=within(8)),
        Way("2 HU a step", series(slope=2), bound="half a step", check=within(1)),
        Way("padding of -2000 HU outside the field of view", _padded(-2000), check=exactly(_in_air), warned="field"),
        Way("padding tag outside the field of view", _padded(-1010, tag=True), check=exactly(_in_air), warned="field"),
        Way("RescaleSlope 0", series(edit=setting(4, RescaleSlope="0")), refused="5.dcm: RescaleSlope 0"),
        Way("RescaleType of an effective-Z map", series(edit=setting(RescaleType="Z_EFF")), refused="Z_EFF"),
        Way("colour images", series(edit=setting(PhotometricInterpretation="RGB")), refused="colour"),
    ]


def _overlay(dataset, index):
    dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") | 0xA000).tobytes()


def _invert(dataset, index):
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.PixelData = (4095 - np.frombuffer(dataset.PixelData, "<u2")).astype("<u2").tobytes()


def _mixed(at: int = 11, **kwargs):
    def write(folder: Path) -> None:
        write_series(folder / "study", phantom()[:at])
        write_series(folder / "study", phantom()[at:], origin=_below(at), numbers=range(at + 1, N + 1), **kwargs)

    return write


def _below(k: int) -> tuple[float, float, float]:
    return ORIGIN[0], ORIGIN[1], ORIGIN[2] - k * SPACING[0]


def _outside() -> np.ndarray:
    y, x = np.ogrid[:40, :44]
    return (y - 19.5) ** 2 + (x - 21.5) ** 2 > 24**2


def _in_air() -> np.ndarray:
    hu = phantom().copy()
    hu[:, _outside()] = -1024
    return hu


def _padded(value: int, tag: bool = False):
    def write(folder: Path) -> None:
        hu = phantom().copy()
        hu[:, _outside()] = value

        def edit(dataset, index):
            if tag:
                dataset.add_new("PixelPaddingValue", "SS", value)

        write_series(folder / "study", hu, signed=True, intercept=0, bits=(16, 16), edit=edit)

    return write


def _containers() -> list[Way]:
    multi = {
        "Enhanced": {},
        "Legacy Converted Enhanced": {"legacy": True},
        "Enhanced, in three files": {"parts": 3},
    }
    ways = [Way(name, _enhanced(**kwargs)) for name, kwargs in multi.items()]
    ways += [Way(f"Enhanced, {syntax}", _enhanced(syntax=syntax)) for syntax in SYNTAXES if syntax != "explicit"]
    for table, fragments in (("none", 1), ("extended", 1), ("basic", 3), ("none", 2)):
        name = f"Enhanced, JPEG-LS, {fragments} fragment(s) a frame, offset table {table}"
        ways.append(Way(name, _enhanced(syntax="jpeg_ls", table=table, fragments=fragments)))
    ways += [
        Way("Enhanced, frames shuffled", _enhanced(order=_SHUFFLED)),
        Way("Enhanced, sagittal", _enhanced(axes=(2, 0, 1)), warned="axially"),
        Way("Enhanced, in a zip", _zipped(_enhanced())),
        Way("Enhanced, compressed, in a zip", _zipped(_enhanced(syntax="jpeg_2000"))),
        Way("Enhanced, two stacks", _enhanced(twice=True), warned="2 stacks in 1 series"),
        Way("classic multi-frame with one geometry", _enhanced(edit=_classic), refused="20 frames but one geometry"),
        Way("Enhanced without positions", _enhanced(edit=_unplaced), refused="without a position"),
        Way("a file a slice in nested folders", _nested),
        Way("a zip", _zipped(series())),
        Way("a zip of nested folders", _zipped(_nested)),
        Way("a zip, compressed slices", _zipped(series(syntax="rle"))),
        Way("a DICOMDIR", _dicomdir),
        Way("without preamble and file meta", _bare),
    ]
    orders = {"RAS": ((2, 1, 0), (True, True, True)), "LPS": ((2, 1, 0), (False, False, True))}
    orders |= {"sagittal": ((1, 0, 2), (True, True, False)), "coronal": ((2, 0, 1), (True, True, True))}
    orders |= {"(z, y, x)": ((0, 1, 2), (False, False, False)), "left-handed": ((2, 1, 0), (False, True, False))}
    ways += [Way(f"NIfTI stored {name}", _nifti(*order)) for name, order in orders.items()]
    ras = orders["RAS"]
    return [
        *ways,
        Way("NIfTI, gzip", _nifti(*ras, suffix=".nii.gz")),
        Way("NIfTI, float32", _nifti(*ras, kind=np.float32)),
        Way("NIfTI, float64", _nifti(*ras, kind=np.float64)),
        Way("NIfTI, int32", _nifti(*ras, kind=np.int32)),
        Way("NIfTI, uint16 with slope and intercept", _nifti(*ras, kind=np.uint16, scale=(0.5, -1024))),
        Way("NIfTI with a fourth axis of one", _nifti(*ras, extra=(1,))),
        Way("NIfTI of two volumes", _nifti(*ras, extra=(2,)), refused="4 dimensions"),
        Way("NIfTI of colours", _nifti(*ras, kind=np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])), refused="colour"),
        Way("NIfTI, gzip, truncated", _nifti(*ras, suffix=".nii.gz", keep=0.6), refused="not a readable NIfTI"),
        Way("NIfTI whose qform mirrors its sform", _nifti(*ras, mirror=True), refused="qform"),
        Way("NIfTI scaled to 0..1", _nifti(*ras, kind=np.float32, scale=(1e-3, 0)), refused="no HU"),
    ]


def _enhanced(order=None, twice=False, syntax="explicit", axes=(0, 1, 2), **kwargs):
    def write(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as single:
            files = write_series(single, phantom(), syntax=syntax, axes=axes)
            if order:
                files = [files[k - 1] for k in order]
            stacks = None
            if twice:
                other = [f"b{k}.dcm" for k in range(N)]
                files += write_series(single, phantom()[::-1].copy(), names=other)
                stacks = ["1"] * N + ["2"] * N
            to_enhanced(files, folder / "study", stacks=stacks, **kwargs)

    return write


def _classic(dataset, part):
    del dataset.PerFrameFunctionalGroupsSequence, dataset.SharedFunctionalGroupsSequence
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]


def _unplaced(dataset, part):
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence


def _nested(folder: Path) -> None:
    for index, file in enumerate(write_series(folder / "study", phantom())):
        deep = folder / "study" / f"S{index % 3}" / "deep"
        deep.mkdir(parents=True, exist_ok=True)
        file.rename(deep / file.name)


def _zipped(write):
    def zipped(folder: Path) -> Path:
        with tempfile.TemporaryDirectory() as root:
            write(Path(root))
            with zipfile.ZipFile(folder / "study.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for file in sorted(Path(root).rglob("*")):
                    archive.write(file, file.relative_to(root))
        return folder / "study.zip"

    return zipped


def _dicomdir(folder: Path) -> Path:
    from pydicom.fileset import FileSet

    files = FileSet()
    for file in write_series(folder / "study", phantom()):
        dataset = pydicom.dcmread(file)
        dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20200101", "101010", "1"
        files.add(dataset)
    files.write(folder / "disc")
    files._stage["t"].cleanup()
    return folder / "disc" / "DICOMDIR"


def _bare(folder: Path) -> None:
    for file in write_series(folder / "study", phantom(), syntax="implicit"):
        data = file.read_bytes()
        file.write_bytes(data[data.index(b"\x08\x00\x08\x00") :])


def _nifti(axes, flips, suffix=".nii", kind: Any = np.int16, scale=None, extra=(), keep=1.0, mirror=False):
    def write(folder: Path) -> Path:
        hu = phantom()
        to_volume = np.zeros((4, 4))
        to_volume[3, 3] = 1
        for stored_axis, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
            to_volume[axis, stored_axis] = -1 if flip else 1
            to_volume[axis, 3] = hu.shape[axis] - 1 if flip else to_volume[axis, 3]
        stored = hu.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ expected_affine() @ to_volume
        if scale and scale[1]:
            stored = (stored - scale[1]) / scale[0]
        elif scale:
            stored = stored * scale[0]
        stored = np.zeros(stored.shape, kind) if np.dtype(kind).names else stored.astype(kind)
        stored = np.ascontiguousarray(np.broadcast_to(stored.reshape(stored.shape + (1,) * len(extra)),
                                                      stored.shape + extra))  # fmt: skip
        image = nibabel.Nifti1Image(stored, affine)
        if scale and scale[1]:
            image.header.set_slope_inter(*scale)
        if mirror:
            image.set_sform(affine, 1)
            image.set_qform(affine @ np.diag([-1.0, 1, 1, 1]), 1)
        path = folder / f"study{suffix}"
        nibabel.save(image, path)
        if scale and scale[1]:  # nibabel chooses its own slope for unscaled data
            loaded: Any = nibabel.load(path)
            assert loaded.dataobj.slope == scale[0]
        if keep < 1:
            data = path.read_bytes()
            path.write_bytes(data[: int(keep * len(data))])
        return path

    return write


def _splits() -> list[Way]:
    return [
        Way("over folders", _over(lambda k: {"folder": f"{k % 4}"})),
        Way("over two acquisitions that meet", _over(lambda k: {"edit": setting(AcquisitionNumber=1 + (k > 8))})),
        Way("over a series for each slice, read as one", _over(lambda k: {"series_uid": f"1.2.9.{k}"}),
            options={"series": "all"}),
        Way("over a series for each slice", _over(lambda k: {"series_uid": f"1.2.9.{k}"}), refused="series of 1 slice"),
        Way("over two studies", _over(lambda k: {"study_uid": f"1.2.9.{k % 2}", "series_uid": f"1.2.9.{k % 2}.1"}),
            refused="2 studies"),
        Way("beside a thick soft series", _beside(10, spacing_mm=(1.25, 0.45, 0.4), series_uid="1.2.9"),
            warned="2 series"),
        Way("beside a localizer", _beside(1, edit=setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
            warned="localizer"),
        Way("beside an unmarked coronal localizer of the same series", _beside(1, axes=(1, 0, 2)), warned="not axial"),
        Way("beside a screen capture", _beside(1, edit=_screen), warned="secondary capture"),
        Way("beside a dose report stored as CT",
            _beside(1, edit=setting(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])), warned="dose report"),
        Way("beside an MR series", _beside(edit=_magnetic, series_uid="1.2.9"), warned="modality MR"),
        Way("beside foreign files", _foreign, warned="left out 2 file"),
        Way("with reformats in the same series", _beside(axes=(2, 0, 1)), warned="2 stacks in 1 series"),
        Way("with a second kernel in the same series", _beside(edit=setting(ConvolutionKernel="B31f")),
            warned="kernel B31f"),
        Way("with a second acquisition in the same series", _again({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}),
            warned="AcquisitionNumber 2"),
        Way("with a thorax of thick slices in the same series",
            _beside(spacing_mm=(5, 0.45, 0.4), origin=(-80, -100, 30)),
            options={"series": "2#1"}),
        Way("one image only", lambda folder: [write_series(folder, phantom()[:1]), None][1], refused="only 1 CT slice"),
        Way("localizers only", series(edit=setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
            refused="no CT slices.*localizer"),
        Way("MR only", series(edit=_magnetic), refused="modality MR"),
        Way("an empty folder", lambda folder: None, refused="no files in it"),
    ]  # fmt: skip


def _over(how):
    def write(folder: Path) -> None:
        for k in range(N):
            kwargs = how(k)
            where = folder / "study" / kwargs.pop("folder", "")
            write_series(where, phantom()[k : k + 1], origin=_below(k), numbers=[k + 1], **kwargs)

    return write


def _beside(count: int = N, **kwargs):
    def write(folder: Path) -> None:
        write_series(folder / "study", phantom())
        other = np.roll(phantom(), 5, axis=1)[:count] if "axes" not in kwargs else phantom()
        files = write_series(folder / "other", other, names=[f"o{k}" for k in range(60)], **kwargs)
        for file in files[count:]:
            file.unlink()

    return write


def _again(first: dict, second: dict):
    def write(folder: Path) -> None:
        write_series(folder / "study", phantom(), edit=setting(**first))
        write_series(folder / "again", np.roll(phantom(), 5, axis=1), edit=setting(**second))

    return write


def _screen(dataset, index):
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage


def _magnetic(dataset, index):
    dataset.Modality = "MR"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage


def _foreign(folder: Path) -> None:
    write_series(folder / "study", phantom())
    (folder / "study" / "index.html").write_text("<html></html>")
    (folder / "study" / "autorun.inf").write_bytes(b"[autorun]")


def _faults() -> list[Way]:
    lost = {"ImagePositionPatient"}
    location = setting(remove=lost, SliceLocation=lambda k: f"{12.5 - 0.625 * k:.4f}")
    ways = [
        Way("a slice twice", _doubled(), warned="1 repeated"),
        Way("slices twice, in another codec", _doubled(3, syntax="jpeg_ls"), warned="3 repeated"),
        Way("another image at one place", _doubled(add=1), refused="other pixels"),
        Way("a missing slice", _missing(9), bound=_LINEAR, check=_between([9]), warned="uneven spacing: 1.25 mm"),
        Way("three missing slices", _missing(9, 10, 11), bound=_LINEAR, check=_between([9, 10, 11]), warned="2.5 mm"),
        Way("missing slices, two gaps", _missing(5, 14), bound=_LINEAR, check=_between([5, 14]), warned="1.25 mm"),
        Way("a missing slice, kept as stored", _missing(9), options={"regular": False}, check=_kept(9),
            warned="uneven"),
        Way("the first and last slices missing", _missing(0, 19),
            check=exactly(lambda: phantom()[1:19], origin=_below(1))),
        Way("every other slice missing", _missing(*range(1, N, 2)),
            check=exactly(lambda: phantom()[::2], spacing=(1.25, 0.45, 0.4))),
        Way("positions rounded to 0.1 mm", series(positions=_positions(1)), bound="0.06 mm in z", check=_nearly),
        Way("orientation that jitters by 1e-4", series(edit=_jitter)),
        Way("numbers padded with blanks and NULs", _padded_numbers),
        Way("one position missing", series(edit=setting(7, remove=lost)), warned="missing in 1 slice"),
        Way("half the positions missing", series(edit=setting(range(0, N, 2), remove=lost)), warned="missing in 10"),
        Way("all positions missing, SliceLocation there", series(edit=location), check=exactly(placed=False),
            warned="SliceLocation"),
        Way("positions and locations missing, InstanceNumber there", series(edit=setting(remove=lost)),
            check=exactly(placed=False, spacing=(2.5, 0.45, 0.4)), warned="InstanceNumber"),
        Way("nothing that orders the slices", series(edit=setting(remove=lost, InstanceNumber=1), names=_LETTERS),
            refused="neither SliceLocation nor InstanceNumber"),
        Way("orientation missing", series(edit=setting(remove=["ImageOrientationPatient"])),
            warned="left and right cannot be verified"),
        Way("orientation missing in one slice", series(edit=setting(3, remove=["ImageOrientationPatient"])),
            refused="4.dcm: ImageOrientationPatient is missing"),
        Way("one slice turned", series(edit=setting(3, ImageOrientationPatient=["0", "1", "0", "-1", "0", "0"])),
            refused="4.dcm: ImageOrientationPatient"),
        Way("orientation that is no right angle",
            series(edit=setting(ImageOrientationPatient=["1", "0", "0", "0.5", "0.8", "0"])), refused="perpendicular"),
        Way("PixelSpacing missing, ImagerPixelSpacing there",
            series(edit=setting(remove=["PixelSpacing"], ImagerPixelSpacing=["0.5", "0.5"])),
            refused="PixelSpacing is missing"),
        Way("PixelSpacing of one slice differs", series(edit=setting(3, PixelSpacing=["0.5", "0.5"])),
            refused="4.dcm: PixelSpacing"),
        Way("a slice of another size in the stack", _odd_slice, refused="odd.dcm: 40 x 42 pixels"),
        Way("decimal commas", series(edit=_commas), refused="PixelSpacing"),
        Way("a truncated file", _cut, refused="12\\.dcm"),
        Way("an unknown transfer syntax", _unknown, refused="transfer syntax"),
        Way("isotropic voxels", series(spacing_mm=(0.5, 0.5, 0.5)), check=exactly(spacing=(0.5, 0.5, 0.5))),
        Way("thick slices of flat pixels", series(spacing_mm=(5, 0.3, 0.9)), check=exactly(spacing=(5, 0.3, 0.9))),
    ]  # fmt: skip
    for degrees in (12.0, -18.0, 25.0):
        ways.append(Way(f"gantry tilt {degrees:+.0f} degrees", _tilted(degrees), bound=_TILT_BOUND,
                        check=_untilted(degrees), warned=f"gantry tilt {abs(degrees):.1f}"))  # fmt: skip
        ways.append(Way(f"gantry tilt {degrees:+.0f} degrees, kept", _tilted(degrees), options={"regular": False},
                        check=_sheared(degrees)))  # fmt: skip
    ways.append(Way("a table that rose by a pixel a slice", _tilted(0, drift=1.0), check=_untilted(0, drift=1.0)))
    return ways


_LINEAR = "1 HU from the line between the slices beside the gap"
_TILT_BOUND = "a quarter of the second difference along the rows, and rounding"


def _doubled(count: int = 1, add: int = 0, **kwargs):
    def write(folder: Path) -> None:
        write_series(folder / "study", phantom())
        copy = phantom()[5 : 5 + count] + add
        write_series(folder / "study", copy, origin=_below(5), names=[f"copy{k}" for k in range(count)], **kwargs)

    return write


def _missing(*indices: int):
    def write(folder: Path) -> None:
        for k, file in enumerate(write_series(folder / "study", phantom())):
            if k in indices:
                file.unlink()

    return write


def _between(missing):
    def check(volume: Volume) -> None:
        truth = phantom()
        kept = [k for k in range(N) if k not in missing]
        np.testing.assert_array_equal(volume.hu[kept], truth[kept])
        for k in missing:
            low, high = max(i for i in kept if i < k), min(i for i in kept if i > k)
            line = truth[low] + (truth[high].astype(float) - truth[low]) * (k - low) / (high - low)
            assert np.abs(volume.hu[k] - line).max() <= 1
        np.testing.assert_allclose(volume.affine, expected_affine(), atol=1e-3)
        np.testing.assert_array_equal(volume.slice_numbers, [-1 if k in missing else k + 1 for k in range(N)])

    return check


def _kept(missing):
    return lambda volume: np.testing.assert_array_equal(volume.hu, np.delete(phantom(), missing, axis=0))


def _positions(decimals: int) -> np.ndarray:
    z = np.round(ORIGIN[2] - SPACING[0] * np.arange(N), decimals)
    return np.stack((np.full(N, ORIGIN[0]), np.full(N, ORIGIN[1]), z), axis=1)


def _nearly(volume: Volume) -> None:
    np.testing.assert_array_equal(volume.hu, phantom())
    np.testing.assert_allclose(volume.positions_mm[:, 2], _positions(9)[:, 2], atol=0.06)
    assert volume.resampling is None and abs(volume.spacing_mm[0] - SPACING[0]) < 0.004


def _jitter(dataset, index):
    noise = np.random.default_rng(index).uniform(-1e-4, 1e-4, 6)
    dataset.ImageOrientationPatient = [f"{value:.6f}" for value in np.array([1, 0, 0, 0, 1, 0]) + noise]


def _padded_numbers(folder: Path) -> None:
    def edit(dataset, index):
        dataset.ImagePositionPatient = ["-80.0 ", " -100", f"{ORIGIN[2] - SPACING[0] * index:.4f} "]
        dataset.RescaleIntercept = " -1024"

    for file in write_series(folder / "study", phantom(), edit=edit):
        data = file.read_bytes()
        assert data.count(b"DS\x06\x001.0 \\1") == 0
        file.write_bytes(data.replace(b"0.45\\0.4", b"0.45\\.4\0"))


def _odd_slice(folder: Path) -> None:
    write_series(folder / "study", phantom())[13].unlink()
    write_series(folder / "study", phantom()[13:14, :, :42], origin=_below(13), names=["odd.dcm"])


def _commas(dataset, index):
    element = dataset["PixelSpacing"]
    del dataset.PixelSpacing
    raw = RawDataElement(element.tag, "DS", 10, b"0,45\\0,40 ", 0, False, True)
    dataset._dict[element.tag] = raw


def _cut(folder: Path) -> None:
    file = write_series(folder / "study", phantom(), syntax="jpeg_lossless")[11]
    file.write_bytes(file.read_bytes()[:-300])


def _unknown(folder: Path) -> None:
    file = write_series(folder / "study", phantom())[11]
    file.write_bytes(file.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1))


def _canvas(drift: float) -> np.ndarray:
    """The phantom between rows of air: float [N, rows, columns], room for a drift of so many rows a slice."""
    room = int(np.ceil(abs(drift) * (N - 1))) + 1
    return np.pad(phantom().astype(float), ((0, 0), (room, room), (0, 0)), constant_values=-1000)


def _tilted(degrees: float, drift: float | None = None):
    """Slices whose normal is tilted about x while the table moves along z (or, with `drift`, rises)."""

    def write(folder: Path) -> None:
        turn, rows = _rotation(0, degrees), _drift(degrees, drift)
        canvas = _canvas(rows)
        height = canvas.shape[1] - int(np.ceil(abs(rows) * (N - 1)))
        shift = rows * np.arange(N)
        shift = shift - shift.min()
        stored = np.stack([_moved(canvas[k], shift[k], height) for k in range(N)])
        first = np.array([ORIGIN[0], ORIGIN[1], ORIGIN[2] - 0.0]) + shift[0] * SPACING[1] * turn[:, 1]
        step = turn @ np.array([0, 0, -SPACING[0]]) + rows * SPACING[1] * turn[:, 1]
        positions = first + np.arange(N)[:, None] * step
        cosines = [*(f"{value:.10f}" for value in turn[:, 0]), *(f"{value:.10f}" for value in turn[:, 1])]
        edit = setting(ImageOrientationPatient=lambda k: cosines)
        write_series(folder / "study", np.rint(stored).astype(np.int16), positions=positions, edit=edit)

    return write


def _drift(degrees: float, drift: float | None) -> float:
    """Rows a slice moves: along z the table's path has no other part across the slices."""
    return -np.tan(np.radians(degrees)) * SPACING[0] / SPACING[1] if drift is None else drift


def _moved(plane: np.ndarray, shift: float, height: int) -> np.ndarray:
    at = shift + np.arange(height)
    below = np.minimum(at.astype(int), plane.shape[0] - 2)
    part = (at - below)[:, None]
    return plane[below] * (1 - part) + plane[below + 1] * part


def _untilted(degrees: float, drift: float | None = None):
    def check(volume: Volume) -> None:
        rows = _drift(degrees, drift)
        canvas = _canvas(rows)
        shift = rows * np.arange(N)
        bend = np.zeros_like(canvas)
        bend[:, 1:-1] = np.abs(canvas[:, 2:] - 2 * canvas[:, 1:-1] + canvas[:, :-2])
        height = canvas.shape[1] - int(np.ceil(abs(rows) * (N - 1)))
        unit = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
        np.testing.assert_allclose(unit.T @ unit, np.eye(3), atol=1e-6)
        turn = _rotation(0, degrees)
        inverse = np.linalg.inv(expected_affine(SPACING, ORIGIN))
        for k in range(N):  # where each of our voxels lies in the canvas, from the affine alone
            corner = inverse @ np.append(turn.T @ (volume.affine @ [k, 0, 0, 1])[:3]
                                         - turn.T @ np.array(ORIGIN) + ORIGIN, 1)  # fmt: skip
            assert abs(corner[0] - k) < 1e-3 and abs(corner[2]) < 1e-3
            first = max(int(np.ceil(shift[k] - shift.min() - corner[1])) + 1, 0)
            last = int(np.floor(shift[k] - shift.min() + height - 1 - corner[1])) - 1
            at = corner[1] + np.arange(first, last)
            truth = _moved(canvas[k], 0.0, canvas.shape[1])
            low = np.floor(at + 1e-6).astype(int)
            part = (at - low)[:, None]
            expected = truth[low] * (1 - part) + truth[low + 1] * part
            room = 0.25 * np.maximum(bend[k][low], bend[k][low + 1]) + 1.5
            got = volume.hu[k, first:last]
            assert (np.abs(got - expected) <= (0.51 if drift is not None else room)).all()

    return check


def _sheared(degrees: float):
    def check(volume: Volume) -> None:
        rows, turn = _drift(degrees, None), _rotation(0, degrees)
        step = turn @ np.array([0, 0, -SPACING[0]]) + rows * SPACING[1] * turn[:, 1]
        np.testing.assert_allclose(volume.affine[:3, 0], step, atol=1e-5)
        np.testing.assert_allclose(step[:2], 0, atol=1e-9)  # the table moves along z

    return check


def every_way() -> list[Way]:
    """All of them."""
    return [*_orders(), *_orientations(), *_pixels(), *_containers(), *_splits(), *_faults()]


def main() -> None:
    """Counts them."""
    counts: collections.Counter[str] = collections.Counter()
    for way in every_way():
        with tempfile.TemporaryDirectory() as folder:
            counts[way.run(Path(folder))] += 1
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in ("exact", "bounded", "refused"))
    sys.stdout.write(f"{counts.total()} ways: {kinds}\n")


if __name__ == "__main__":
    main()
