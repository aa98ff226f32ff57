"""Small RSNA-layout folders with known voxels, written without the package's own writers."""

import csv
import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1, generate_uid

from cspine_jax.phantom.writer import _jpeg_lossless

TARGETS = ("patient_overall", "C1", "C2", "C3", "C4", "C5", "C6", "C7")
SPACING = (2.0, 0.5, 0.4)
CORNER = (-40.0, -30.0, 100.0)


@dataclasses.dataclass
class Made:
    """A study as it was meant: HU and vertebra labels superior slice first, and where slice k.dcm is."""

    uid: str
    hu: np.ndarray
    mask: np.ndarray
    numbers: np.ndarray


def make(uid: str, depth: int = 8, height: int = 24, width: int = 20, seed: int = 0, ascending: bool = False) -> Made:
    """Noise with a block of each vertebra: C1 on the first slices, C7 on the last."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(-1000, 1500, (depth, height, width)).astype(np.int16)
    mask = np.zeros(hu.shape, np.uint8)
    for row in range(depth):
        level = 1 + row * 7 // depth
        mask[row, 4:10, 5 : 9 + row % 3] = level
        mask[row, 14:16, 3:5] = min(level + 1, 8)
    numbers = np.arange(1, depth + 1)
    return Made(uid, hu, mask, numbers[::-1].copy() if ascending else numbers)


def write_dicom(folder: Path, made: Made, jpeg: bool = False) -> None:
    folder.mkdir(parents=True)
    series = generate_uid(entropy_srcs=[made.uid])
    for row, (number, plane) in enumerate(zip(made.numbers, made.hu, strict=True)):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.TransferSyntaxUID = JPEGLosslessSV1 if jpeg else ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[made.uid, str(row)])
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID = made.uid, series
        ds.Modality, ds.InstanceNumber = "CT", int(number)
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [CORNER[0], CORNER[1], CORNER[2] - row * SPACING[0]]
        ds.PixelSpacing, ds.SliceThickness = [SPACING[1], SPACING[2]], 1.25
        ds.Rows, ds.Columns = plane.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleIntercept, ds.RescaleSlope = -1024, 1
        stored = plane + np.int16(1024)
        ds.PixelData = encapsulate([_jpeg_lossless(stored)]) if jpeg else stored.tobytes()
        ds["PixelData"].VR = "OB" if jpeg else "OW"
        pydicom.dcmwrite(folder / f"{number}.dcm", ds, enforce_file_format=True)


def write_mask(path: Path, mask: np.ndarray, sagittal: bool = True) -> None:
    """Stores the mask along (x, y, z) towards left, front and head as the real ones, or as (z, y, x) of the volume."""
    to_lps = np.zeros((4, 4))
    to_lps[2, 0], to_lps[1, 1], to_lps[0, 2] = -SPACING[0], SPACING[1], SPACING[2]
    to_lps[:, 3] = (*CORNER, 1)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ to_lps
    array = mask
    if sagittal:
        array = mask.transpose(2, 1, 0)[:, ::-1, ::-1]
        depth, height, _ = mask.shape
        affine = affine @ np.array([[0, 0, -1, depth - 1], [0, -1, 0, height - 1], [1, 0, 0, 0], [0, 0, 0, 1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array), affine), path)


def write_tables(root: Path, labels: dict[str, tuple[int, ...]], boxes: list[tuple]) -> None:
    """`labels[uid]` are the fractured levels 1..7; a box is (uid, x, y, width, height, slice_number)."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "train.csv").open("w", newline="") as file:
        rows = [[uid, int(bool(hit)), *(int(level in hit) for level in range(1, 8))] for uid, hit in labels.items()]
        csv.writer(file).writerows([("StudyInstanceUID", *TARGETS), *rows])
    with (root / "train_bounding_boxes.csv").open("w", newline="") as file:
        header = ("StudyInstanceUID", "x", "y", "width", "height", "slice_number")
        csv.writer(file).writerows([header, *boxes])


def write_folder(root: Path, studies: int = 10, depth: int = 8) -> dict[str, Made]:
    """A folder in which every second study is fractured; those have boxes but every third of them, and most masks."""
    made, labels, boxes = {}, {}, []
    for number in range(studies):
        uid = f"1.2.{100 + number}"
        study = made[uid] = make(uid, depth + number % 3, seed=number, ascending=number % 4 == 3)
        write_dicom(root / "train_images" / uid, study)
        if number % 5 != 4:
            write_mask(root / "segmentations" / f"{uid}.nii.gz", study.mask)
        labels[uid] = (1 + number % 7,) if number % 2 else ()
        if number % 2 and number % 3:
            rows = np.flatnonzero((study.mask == 1 + number % 7).any((1, 2)))
            boxes += [(uid, 5, 4, 6.5, 7, study.numbers[row]) for row in rows]
    write_tables(root, labels, boxes)
    return made
