"""Studies become files: DICOM slices, NIfTI masks and rows of tables, in the layout of the RSNA 2022 data set."""

import dataclasses
import gzip
from pathlib import Path

import gdcm
import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1

from cspine_jax import __version__
from cspine_jax.phantom.plan import StudyPlan
from cspine_jax.phantom.sample import WRITER_STREAM, stream, study_uid

CODECS = ("explicit", "mixed")

_JPEG_SHARE = 0.3  # of studies under codec "mixed"
_IMPLEMENTATION_UID = UID("2.25.302617244389023190273840561924370912853")


@dataclasses.dataclass(frozen=True)
class Box:
    """One row of train_bounding_boxes.csv: pixels of the stored image, `slice_number` names `<slice_number>.dcm`."""

    x: float
    y: float
    width: float
    height: float
    slice_number: int


def slice_numbers(plan: StudyPlan) -> np.ndarray:
    """Int [D]: k of `<k>.dcm` for each slice, superior first."""
    q = plan.acquisition
    numbers = q.first_number + np.arange(q.slices)
    return numbers[::-1] if q.ascending else numbers


def positions_mm(plan: StudyPlan) -> np.ndarray:
    """float64 [D, 3]: LPS centre of the first pixel of each slice, superior first, to the 0.001 mm that is stored."""
    q = plan.acquisition
    corner = -(q.size - 1) / 2 * q.pixel_mm
    z = q.top_mm - q.spacing_mm * np.arange(q.slices) + q.origin_mm[2]
    x, y = (corner + q.centre_mm[axis] + q.origin_mm[axis] for axis in (0, 1))
    return np.round(np.stack([np.full_like(z, x), np.full_like(z, y), z], axis=1), 3)


def affine_lps(plan: StudyPlan) -> np.ndarray:
    """float64 [4, 4]: voxel index (z, y, x, 1), superior first, to LPS mm, from what the files say."""
    position, pixel = positions_mm(plan), _pixel_mm(plan)
    affine = np.zeros((4, 4))
    affine[2, 0] = (position[-1, 2] - position[0, 2]) / (len(position) - 1)
    affine[1, 1] = affine[0, 2] = pixel
    affine[:3, 3], affine[3, 3] = position[0], 1
    return affine


def _pixel_mm(plan: StudyPlan) -> float:
    return round(plan.acquisition.pixel_mm, 6)


def write_dicom(folder: Path, plan: StudyPlan, hu: np.ndarray, *, seed: int, codec: str = "explicit") -> None:
    """Writes `folder/<k>.dcm`, one CT slice a file.

    Args:
        folder: created if missing.
        plan: of the study.
        hu: int16 [D, H, W], superior slice first.
        seed: the data set's, for UIDs and the scanner's habits.
        codec: "explicit" writes explicit VR little endian; "mixed" writes 3 studies in 10 as JPEG-Lossless (.70).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = stream(seed, plan.index, WRITER_STREAM)
    signed, intercept = ((True, -1024), (False, -1024), (True, 0))[rng.choice(3, p=(0.6, 0.25, 0.15))]
    if hu.min() < -1024:
        signed, intercept = True, -1024  # the padding of circular fields is stored as -2000
    jpeg = bool(rng.random() < _JPEG_SHARE) and codec == "mixed"
    stored = hu - np.int16(intercept)
    if not signed:
        stored = stored.astype(np.uint16)
    dataset = _header(plan, seed, signed, intercept, rng)
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1 if jpeg else ExplicitVRLittleEndian
    for plane, position, number in zip(stored, positions_mm(plan), slice_numbers(plan), strict=True):
        uid = UID(study_uid(seed, plan.index, plan.uid, "image", number))
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
        dataset.InstanceNumber = int(number)
        dataset.ImagePositionPatient = [f"{value:.3f}" for value in position]
        dataset.SliceLocation = f"{position[2]:.3f}"
        dataset.PixelData = encapsulate([_jpeg_lossless(plane)]) if jpeg else plane.tobytes()
        dataset["PixelData"].is_undefined_length = jpeg
        pydicom.dcmwrite(folder / f"{number}.dcm", dataset, enforce_file_format=True)


def _header(plan: StudyPlan, seed: int, signed: bool, intercept: int, rng: np.random.Generator) -> FileDataset:
    """Everything that is the same in all slices of a study."""
    q, a = plan.acquisition, plan.anatomy
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.ImplementationClassUID = _IMPLEMENTATION_UID
    meta.ImplementationVersionName = "CSPINE_PHANTOM"
    values = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "StudyDate": "20220101",
        "SeriesDate": "20220101",
        "ContentDate": "20220101",
        "StudyTime": "120000",
        "ContentTime": "120000",
        "AccessionNumber": "",
        "Modality": "CT",
        "Manufacturer": "PHANTOM",
        "ManufacturerModelName": f"cspine_jax {__version__}",
        "ReferringPhysicianName": "",
        "SeriesDescription": "C-SPINE BONE",
        "PatientName": "PHANTOM",
        "PatientID": f"PHANTOM-{plan.index}",
        "PatientBirthDate": "",
        "PatientSex": a.sex,
        "PatientAge": f"{int(a.age):03d}Y",
        "BodyPartExamined": "CSPINE",
        "SliceThickness": f"{q.thickness_mm:.4f}",
        "KVP": str(int(rng.choice((100, 120, 120, 140)))),
        "ConvolutionKernel": ("B40", "B50", "B60", "B70")[min(3, int(4 * q.sharpness))],
        "PatientPosition": "HFS",
        "StudyInstanceUID": plan.uid,
        "SeriesInstanceUID": study_uid(seed, plan.index, plan.uid, "series"),
        "FrameOfReferenceUID": study_uid(seed, plan.index, plan.uid, "frame"),
        "PositionReferenceIndicator": "",
        "StudyID": "1",
        "SeriesNumber": 1,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": q.size,
        "Columns": q.size,
        "PixelSpacing": [f"{_pixel_mm(plan):.6f}"] * 2,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(signed),
        "WindowCenter": 400,
        "WindowWidth": 1800,
        "RescaleIntercept": intercept,
        "RescaleSlope": 1,
        "RescaleType": "HU",
    }
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    if signed and intercept == -1024:
        dataset.add_new("PixelPaddingValue", "SS", -2000)
    return dataset


def _jpeg_lossless(plane: np.ndarray) -> bytes:
    """One 16-bit frame as a JPEG-Lossless stream (process 14, selection value 1)."""
    owner = gdcm.ImageReader()  # an image made on its own is freed twice: gdcm counts references, its binding does not
    image = owner.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimension(0, plane.shape[1])
    image.SetDimension(1, plane.shape[0])
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 16, 15, int(plane.dtype == np.int16)))
    monochrome = gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2)
    image.SetPhotometricInterpretation(monochrome)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetVR(gdcm.VR(gdcm.VR.OW))
    element.SetByteStringValue(plane.tobytes())
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(image)
    if not change.Change():
        raise RuntimeError("gdcm could not encode a slice as JPEG-Lossless")
    fragment = change.GetOutput().GetDataElement().GetSequenceOfFragments().GetFragment(0)
    return fragment.GetByteValue().GetBuffer().encode("utf-8", "surrogateescape")


def write_nifti(path: Path, plan: StudyPlan, labels: np.ndarray) -> None:
    """Writes uint8 [D, H, W] labels as the real masks are stored: array axes (x, y, z), towards left, front and head.

    Neither the axis order nor the directions of y and z are those of the DICOM series: a reader must use the affine.
    """
    array = labels.transpose(2, 1, 0)[:, ::-1, ::-1]
    to_zyx = np.array(
        [
            [0, 0, -1, labels.shape[0] - 1],
            [0, -1, 0, labels.shape[1] - 1],
            [1, 0, 0, 0],
            [0, 0, 0, 1],
        ],
        float,
    )
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps(plan) @ to_zyx
    image = nib.Nifti1Image(array, ras)
    image.header.set_xyzt_units("mm")
    image.set_sform(ras, code=1)
    image.set_qform(ras, code=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def fracture_boxes(plan: StudyPlan, fractures: np.ndarray, *, seed: int) -> list[Box]:
    """The boxes a reader would draw: one a slice that shows fracture voxels, padded, clipped to the image.

    Args:
        plan: of the study.
        fractures: uint8 [D, H, W], 0 or level + 1, superior slice first.
        seed: the data set's; the reader's generosity is drawn from it.

    Returns:
        Boxes ordered by slice number.
    """
    q = plan.acquisition
    rng = stream(seed, plan.index, WRITER_STREAM, 1)
    # A reader keeps the habit over a study: a generous margin, wider than high, that gives the sizes of the real boxes.
    margin_x, margin_y = np.exp(rng.normal(np.log((12.5, 9.5)), 0.55)) / q.pixel_mm
    numbers = slice_numbers(plan)
    boxes = []
    for k in np.flatnonzero(fractures.any(axis=(1, 2))):
        ys, xs = np.nonzero(fractures[k])
        wobble = np.exp(rng.normal(0, 0.12, 4))
        left, right = xs.min() - margin_x * wobble[0], xs.max() + 1 + margin_x * wobble[1]
        top, bottom = ys.min() - margin_y * wobble[2], ys.max() + 1 + margin_y * wobble[3]
        left, top = max(left, 0.0), max(top, 0.0)
        right, bottom = min(right, float(q.size)), min(bottom, float(q.size))
        sides = (round(float(v), 5) for v in (left, top, right - left, bottom - top))
        boxes.append(Box(*sides, slice_number=int(numbers[k])))
    return sorted(boxes, key=lambda box: box.slice_number)
