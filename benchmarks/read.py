"""DICOM series -> volume: `read_study` against the loop everybody writes first, and against SimpleITK.

    python benchmarks/read.py [--slices 240] [--size 512] [--repeat 5] [--study FOLDER]

The loop: `dcmread(file).pixel_array * slope + intercept` for each file, sorted by ImagePositionPatient, stacked.
SimpleITK: `ImageSeriesReader` over `GetGDCMSeriesFileNames`, and the array. All run in turn on the same files (in the
page cache) and the median of the ratios is printed, with the peak memory of one `read_study` in a fresh process over
the size of the volume. Without `--study` a series with the look and the noise of
a neck CT is written uncompressed and as JPEG-Lossless.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813 (as everybody calls it)
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1, generate_uid
from scipy import ndimage

from cspine_jax.ct import read_study


def serial_loop(folder: Path) -> np.ndarray:
    """What this is measured against: float64 [D, H, W] HU, superior slice first."""
    slices = []
    for file in folder.glob("*.dcm"):
        dataset = pydicom.dcmread(file)
        hu = dataset.pixel_array * dataset.RescaleSlope + dataset.RescaleIntercept
        slices.append((float(dataset.ImagePositionPatient[2]), hu))
    slices.sort(key=lambda item: -item[0])
    return np.stack([hu for _, hu in slices])


def make_slice(size: int, z: float, rng: np.random.Generator) -> np.ndarray:
    """int16 [size, size] HU: a neck in air with bone, and noise correlated as a scanner's."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    hu = np.full((size, size), -1000.0)
    hu[(x / 0.34) ** 2 + (y / 0.28) ** 2 < 1] = 45
    hu[(x / 0.31) ** 2 + (y / 0.25) ** 2 < 1] = 60
    hu[(x / 0.08) ** 2 + ((y + 0.02) / 0.06) ** 2 < 1] = 250 + 100 * np.sin(z)
    hu[np.abs((x / 0.08) ** 2 + ((y + 0.02) / 0.06) ** 2 - 1) < 0.15] = 1100
    hu[(x / 0.04) ** 2 + ((y + 0.15) / 0.04) ** 2 < 1] = -990
    noise = ndimage.gaussian_filter(rng.normal(0, 1, (size, size)), 0.7) * 70
    return np.clip(np.rint(ndimage.gaussian_filter(hu, 0.8) + noise), -1024, 3000).astype(np.int16)


def write_series(folder: Path, slices: int, size: int, jpeg: bool) -> None:
    """Writes `folder/<k>.dcm` with the elements a scanner writes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    study, series = generate_uid(), generate_uid()
    planes = [make_slice(size, z / 10, rng) for z in range(8)]
    for k in range(slices):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = JPEGLosslessSV1 if jpeg else ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = study, series, "CT"
        dataset.ImageType, dataset.Manufacturer = ["ORIGINAL", "PRIMARY", "AXIAL"], "BENCHMARK"
        dataset.PatientName, dataset.PatientID, dataset.InstanceNumber = "Bench^Mark", "0", k + 1
        dataset.SliceThickness, dataset.KVP, dataset.PatientPosition = "0.625", "120", "HFS"
        dataset.ImagePositionPatient = ["-100", "-100", f"{100 - 0.625 * k:.3f}"]
        dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], ["0.4", "0.4"]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows = dataset.Columns = size
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "1", "-1024", "HU"
        dataset.WindowCenter, dataset.WindowWidth = "400", "1800"
        stored = (planes[k % len(planes)].astype(np.int32) + 1024).astype(np.uint16)
        dataset.PixelData = encapsulate([jpeg_lossless(stored)]) if jpeg else stored.tobytes()
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB" if jpeg else "OW", jpeg
        dataset.save_as(folder / f"{k + 1}.dcm", enforce_file_format=True)


def jpeg_lossless(plane: np.ndarray) -> bytes:
    """One 12-bit frame as JPEG-Lossless, first-order prediction."""
    reader = gdcm.ImageReader()  # owns the image: gdcm's binding would free a bare one twice
    image = reader.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimension(0, plane.shape[1])
    image.SetDimension(1, plane.shape[0])
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
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


def simpleitk(folder: Path) -> np.ndarray:
    """The other thing this is measured against: [D, H, W] HU in SimpleITK's order, inferior slice first."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


def compare(name: str, folder: Path, repeat: int) -> None:
    """Prints times, the median ratio to each of the others, and peak memory over the volume's size."""
    volume = read_study(folder)
    others: dict[str, Callable[[Path], np.ndarray]] = {"pydicom loop": serial_loop, "SimpleITK": simpleitk}
    for other, read in others.items():
        hu = read(folder) if other != "SimpleITK" else read(folder)[::-1]
        if volume.hu.shape != hu.shape or not np.array_equal(volume.hu, hu):
            print(f"{name}: {other} does not agree (several series, padding or gaps?); times all the same")
    ours: list[float] = []
    theirs: dict[str, list[float]] = {other: [] for other in others}
    for _ in range(repeat):
        ours.append(seconds(read_study, folder))
        for other, read in others.items():
            theirs[other].append(seconds(read, folder))
    cold = subprocess.run(
        [sys.executable, "-c", _COLD, str(folder)], capture_output=True, text=True, check=True
    ).stdout.split()
    print(
        f"{name} {volume.shape}: read_study {1 / statistics.median(ours):.2f} studies/s; first study of a process "
        f"{float(cold[0]):.2f} s; peak memory {float(cold[1]):.2f} x volume"
    )
    for other, times in theirs.items():
        ratios = [their / our for their, our in zip(times, ours, strict=True)]
        print(
            f"  against {other:12s} {1 / statistics.median(times):6.2f} studies/s: ratio "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            flush=True,
        )


def seconds(read: Callable[[Path], Any], folder: Path) -> float:
    """Wall time of one reading."""
    start = time.perf_counter()
    read(folder)
    return time.perf_counter() - start


_COLD = """
import resource, sys, time
from cspine_jax.ct import read_study
def peak():  # ru_maxrss would count the parent's
    try:
        return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start = peak(), time.perf_counter()
volume = read_study(sys.argv[1])
print(time.perf_counter() - start, (peak() - before) / volume.hu.nbytes)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slices", type=int, default=240)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--study", type=Path, help="time this folder of .dcm files instead of made-up ones")
    args = parser.parse_args()
    if args.study:
        compare(args.study.name[-14:], args.study, args.repeat)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, jpeg in (("uncompressed", False), ("jpeg_lossless", True)):
            write_series(Path(folder) / name, args.slices, args.size, jpeg)
            compare(name, Path(folder) / name, args.repeat)


if __name__ == "__main__":
    main()
