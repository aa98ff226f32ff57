"""Small CT series on disk for tests, written with pydicom and gdcm, independent of the code under test.

`write_series` takes a volume in the product's own order (z, y, x: superior, anterior, right first) and stores it as a
scanner might: any slice direction, orientation, transfer syntax, pixel type and numbering.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import gdcm
import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import UID, CTImageStorage, generate_uid

SYNTAXES: dict[str, str] = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big_endian": "1.2.840.10008.1.2.2",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg_lossless": "1.2.840.10008.1.2.4.57",
    "jpeg_lossless_sv1": "1.2.840.10008.1.2.4.70",
    "jpeg_ls": "1.2.840.10008.1.2.4.80",
    "jpeg_2000": "1.2.840.10008.1.2.4.90",
}

LOSSY_SYNTAXES: dict[str, str] = {"jpeg_baseline": "1.2.840.10008.1.2.4.50"}

_JPEG_KINDS = {
    "jpeg_lossless": gdcm.TransferSyntax.JPEGLosslessProcess14,
    "jpeg_lossless_sv1": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "jpeg_baseline": gdcm.TransferSyntax.JPEGBaselineProcess1,
}

STUDY_UID = "1.2.826.0.1.3680043.8.498.1"
SERIES_UID = "1.2.826.0.1.3680043.8.498.1.1"


def make_volume(
    shape: tuple[int, int, int] = (6, 34, 40), seed: int = 0, low: int = -1000, high: int = 1500
) -> np.ndarray:
    """int16 [D, H, W] HU, different in every slice and along every axis.

    A bright block marks the patient's upper left front corner: `hu[0:2, 0:4, -5:]` is 1200 HU.
    """
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    hu = -600 + 900 * z + 300 * np.sin(5 * y) + 200 * x + rng.normal(0, 20, shape)
    hu[0:2, 0:4, -5:] = 1200
    return np.clip(np.rint(hu), -1000, 1500).astype(np.int16)


def write_series(
    folder: str | Path,
    hu: np.ndarray,
    *,
    spacing_mm: tuple[float, float, float] = (0.625, 0.45, 0.4),
    origin: tuple[float, float, float] = (-80.0, -100.0, 60.0),
    syntax: str = "explicit",
    axes: tuple[int, int, int] = (0, 1, 2),
    flips: tuple[bool, bool, bool] = (False, False, False),
    rotation: np.ndarray | None = None,
    slope: float = 1,
    intercept: float = -1024,
    signed: bool = False,
    bits: tuple[int, int] = (16, 12),
    numbers: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    positions: np.ndarray | None = None,
    edit: Callable[[FileDataset, int], None] | None = None,
    study_uid: str = STUDY_UID,
    series_uid: str = SERIES_UID,
) -> list[Path]:
    """Writes one file a slice.

    Args:
        folder: created if missing.
        hu: int16 [D, H, W]; superior slice first, columns towards the patient's left.
        spacing_mm: (z, y, x).
        origin: LPS mm of voxel (0, 0, 0).
        syntax: a key of `SYNTAXES` or `LOSSY_SYNTAXES`.
        axes: which volume axis becomes the stored (slice, row, column) axis; (2, 0, 1) is a sagittal acquisition.
        flips: which stored axes run backwards; the first swaps the z direction of an axial series.
        rotation: [3, 3] turns the whole patient in LPS space.
        slope, intercept: stored = (hu - intercept) / slope, rounded.
        signed: PixelRepresentation 1.
        bits: (BitsAllocated, BitsStored).
        numbers: InstanceNumber and, unless `names` says otherwise, file name of each stored slice; 1, 2, ...
        names: file names.
        positions: [n, 3] ImagePositionPatient instead of the regular ones.
        edit: called with each data set and its stored index before it is written (pixels still uncompressed).
        study_uid, series_uid: as they say.

    Returns:
        The files, in stored order.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vectors = np.array([[0, 0, -spacing_mm[0]], [0, spacing_mm[1], 0], [spacing_mm[2], 0, 0]], float)
    turn = np.eye(3) if rotation is None else np.asarray(rotation, float)
    corner = np.array(origin, float)
    step = np.empty((3, 3))
    for stored_axis, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        step[stored_axis] = -vectors[axis] if flip else vectors[axis]
        if flip:
            corner = corner + vectors[axis] * (hu.shape[axis] - 1)
    stack = hu.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    step, corner = step @ turn.T, turn @ corner
    lengths = np.linalg.norm(step, axis=1)
    cosines = np.concatenate((step[2] / lengths[2], step[1] / lengths[1]))
    kind = f"{'i' if signed else 'u'}{bits[0] // 8}"
    stored = np.rint((stack.astype(np.float64) - intercept) / slope)
    top = 2 ** (bits[1] - int(signed)) - 1
    assert stored.max() <= top and stored.min() >= (-top - 1 if signed else 0), "HU do not fit the stored bits"
    stored = stored.astype(kind)
    numbers = list(range(1, len(stack) + 1)) if numbers is None else list(numbers)
    names = [f"{number}.dcm" for number in numbers] if names is None else list(names)
    files = []
    for index, plane in enumerate(stored):
        dataset = _dataset(plane, study_uid, series_uid)
        dataset.InstanceNumber = numbers[index]
        dataset.ImageOrientationPatient = [f"{value:.10g}" for value in cosines]
        where = corner + index * step[0] if positions is None else positions[index]
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in where]
        dataset.PixelSpacing = [f"{lengths[1]:.8g}", f"{lengths[2]:.8g}"]
        dataset.SliceThickness = "2.5"  # wrong on purpose: spacing comes from the positions
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.10g}", f"{intercept:.10g}"
        dataset.BitsAllocated, dataset.BitsStored = bits
        dataset.HighBit = bits[1] - 1
        dataset.PixelRepresentation = int(signed)
        if edit:
            edit(dataset, index)
        file = folder / names[index]
        _save(dataset, file, syntax)
        files.append(file)
    return files


def to_enhanced(
    files: Sequence[Path],
    folder: str | Path,
    *,
    parts: int = 1,
    table: str = "basic",
    fragments: int = 1,
    legacy: bool = False,
    stacks: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    edit: Callable[[FileDataset, int], None] | None = None,
) -> list[Path]:
    """Rewrites single images as Enhanced (or Legacy Converted Enhanced) CT.

    Args:
        files: of one series, as `write_series` returns them; frames in this order.
        folder: created if missing.
        parts: files to spread the frames over, as a concatenation.
        table: offset table of compressed frames: "basic", "extended" or "none".
        fragments: into which each compressed frame is cut.
        legacy: Legacy Converted, whose kernel is an unassigned attribute.
        stacks: StackID of each frame.
        names: of the files.
        edit: called with each multi-frame data set and its index before it is written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images = [dcmread(file) for file in files]
    names_of_stacks = list(stacks or ["1"] * len(images))
    written = []
    for part, indices in enumerate(np.array_split(np.arange(len(images)), parts)):
        first = images[indices[0]]
        implicit, little = first.original_encoding
        dataset = FileDataset("", {}, b"\0" * 128, first.file_meta, is_implicit_VR=implicit, is_little_endian=little)
        for name in _COPIED:
            if name in first:
                dataset[name] = first[name]
        number = "1.2.840.10008.5.1.4.1.1.2.2" if legacy else "1.2.840.10008.5.1.4.1.1.2.1"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(number)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.NumberOfFrames, dataset.InstanceNumber = len(indices), part + 1
        if parts > 1:
            dataset.ConcatenationFrameOffsetNumber = int(indices[0])
        shared = Dataset()
        kernel = [_item(ConvolutionKernel=first.ConvolutionKernel)]
        if legacy:
            shared.UnassignedSharedConvertedAttributesSequence = kernel
        else:
            shared.CTReconstructionSequence = kernel
        shared.PixelMeasuresSequence = [_item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)]
        dataset.SharedFunctionalGroupsSequence = [shared]
        dataset.PerFrameFunctionalGroupsSequence = [_frame_group(images[i], names_of_stacks[i], i) for i in indices]
        _join(dataset, [images[i] for i in indices], table, fragments)
        if edit:
            edit(dataset, part)
        file = folder / (names[part] if names else f"enhanced{part}.dcm")
        dataset.save_as(file, enforce_file_format=True)
        written.append(file)
    return written


_COPIED = (
    "StudyInstanceUID SeriesInstanceUID SeriesNumber Modality PatientID PatientName PatientPosition SamplesPerPixel "
    "PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue"
).split()


def _item(**values) -> Dataset:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _frame_group(image: FileDataset, stack: str, index: int) -> Dataset:
    content = _item(StackID=stack, InStackPositionNumber=int(index) + 1)
    if "AcquisitionNumber" in image:
        content.FrameAcquisitionNumber = image.AcquisitionNumber
    group = _item(
        FrameContentSequence=[content],
        PixelValueTransformationSequence=[
            _item(RescaleIntercept=image.RescaleIntercept, RescaleSlope=image.RescaleSlope, RescaleType="HU")
        ],
        CTImageFrameTypeSequence=[_item(FrameType=image.ImageType)],
    )
    if "ImagePositionPatient" in image:
        group.PlanePositionSequence = [_item(ImagePositionPatient=image.ImagePositionPatient)]
    if "ImageOrientationPatient" in image:
        group.PlaneOrientationSequence = [_item(ImageOrientationPatient=image.ImageOrientationPatient)]
    return group


def _join(dataset: FileDataset, images: Sequence[FileDataset], table: str, fragments: int) -> None:
    """Puts the pixels of single images into one multi-frame image."""
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        size = images[0].Rows * images[0].Columns * images[0].BitsAllocated // 8
        pixels = b"".join(image.PixelData[:size] for image in images)
        dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
        dataset["PixelData"].VR = images[0]["PixelData"].VR
        return
    frames = [next(generate_frames(image.PixelData, number_of_frames=1)) for image in images]
    if table == "extended":
        dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(
            frames
        )
    else:
        dataset.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=table == "basic")
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True


def expected_affine(
    spacing_mm: tuple[float, float, float] = (0.625, 0.45, 0.4),
    origin: tuple[float, float, float] = (-80.0, -100.0, 60.0),
) -> np.ndarray:
    """The affine `read_study` must return for `write_series` with these values and no rotation."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = -spacing_mm[0], spacing_mm[1], spacing_mm[2]
    affine[:3, 3], affine[3, 3] = origin, 1
    return affine


def _dataset(plane: np.ndarray, study_uid: str, series_uid: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=None, is_little_endian=None)
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
    dataset.Modality, dataset.PatientID, dataset.PatientName = "CT", "SECRET-ID", "Secret^Name"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ConvolutionKernel, dataset.PatientPosition, dataset.SeriesNumber = "B70f", "HFS", 2
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape
    dataset.PixelData = plane.tobytes()
    return dataset


def _save(dataset: FileDataset, file: Path, syntax: str) -> None:
    uid = UID((SYNTAXES | LOSSY_SYNTAXES)[syntax])
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 and syntax != "implicit" else "OW"
    if len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"
    if syntax in ("rle", "jpeg_ls", "jpeg_2000"):
        dataset.file_meta.TransferSyntaxUID = UID(SYNTAXES["explicit"])
        plugin = "pylibjpeg" if syntax == "rle" else ""  # gdcm's encoder aborts on small images
        dataset.compress(uid, generate_instance_uid=False, encoding_plugin=plugin)
        dataset.save_as(file, enforce_file_format=True)
    elif syntax in _JPEG_KINDS:
        plane = np.frombuffer(dataset.PixelData, f"u{dataset.BitsAllocated // 8}")[: dataset.Rows * dataset.Columns]
        plane = plane.reshape(dataset.Rows, dataset.Columns)
        dataset.PixelData = encapsulate([_jpeg_lossless(plane, _JPEG_KINDS[syntax], bool(dataset.PixelRepresentation))])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = uid
        dataset.save_as(file, enforce_file_format=True)
    else:
        dataset.file_meta.TransferSyntaxUID = uid
        if syntax == "big_endian" and dataset.BitsAllocated > 8:
            dataset.PixelData = np.frombuffer(dataset.PixelData, f"<u{dataset.BitsAllocated // 8}").byteswap().tobytes()
        dataset.save_as(file, enforce_file_format=True)


def _jpeg_lossless(plane: np.ndarray, kind: int, signed: bool) -> bytes:
    """One frame as a JPEG-Lossless stream. `reader` owns the image: gdcm's binding would free a bare one twice."""
    reader = gdcm.ImageReader()
    image = reader.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimension(0, plane.shape[1])
    image.SetDimension(1, plane.shape[0])
    bits = plane.dtype.itemsize * 8
    image.SetPixelFormat(gdcm.PixelFormat(1, bits, bits, bits - 1, int(signed)))
    monochrome = gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2)
    image.SetPhotometricInterpretation(monochrome)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetVR(gdcm.VR(gdcm.VR.OW))
    element.SetByteStringValue(plane.tobytes())
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(kind))
    change.SetInput(image)
    assert change.Change()
    fragment = change.GetOutput().GetDataElement().GetSequenceOfFragments().GetFragment(0)
    return fragment.GetByteValue().GetBuffer().encode("utf-8", "surrogateescape")
