"""What the fuzzing tests share: mutations, the corpora, and the check that every mutant passes.

The slow tests read `COUNTS` mutants in all, with fixed seeds: a volume or a `StudyError` each, within five seconds and
a gibibyte, and never a word of the patient's.
"""

import collections
import contextlib
import itertools
import logging
import re
import struct
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import data_store
import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from cspine_jax.ct import Volume, codecs, read_study
from cspine_jax.ct.fields import TAGS
from cspine_jax.errors import StudyError
from tests.ct.dicom_factory import SYNTAXES, make_volume, to_enhanced, write_series

COUNTS = {
    "series": 5_000,
    "real_series": 3_000,
    "phantom": 2_500,
    "enhanced": 2_000,
    "files": 6_000,
    "archives": 4_000,
    "nifti": 1_500,
}
"""Mutants of each slow test: at least 20,000 in all."""

SECONDS = 5.0
BYTES = 1 << 30

REAL_FILES: list[Path] = sorted(
    path
    for package in (pydicom, data_store)
    for path in (Path(str(package.__file__)).parent / "data").rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
)
"""pydicom's own test files and those of the package pydicom-data: real scanners', and real breaches of the standard."""


class Fuzz:
    """Reads mutants and keeps count.

    Attributes:
        seen: how many were read and how many refused.
        unforeseen: where exceptions that no check has a name for came from. They end in a StudyError all the same.
        slowest: (seconds, what it said) of the slowest mutant.
        growth: bytes, the most that one mutant needed on top of what was there.
    """

    def __init__(self, secrets: Iterable[str] = ()):
        self.seen = collections.Counter[str](volume=0, refused=0)
        self.unforeseen = collections.Counter[str]()
        self.slowest = (0.0, "")
        self.growth = 0
        self._secrets = tuple(word.lower() for word in secrets)

    def read(self, path: Path) -> Volume | str:
        """The volume or the refusal; anything else fails the test, as do 5 seconds, 1 GiB, or a patient's name."""
        before, start = _forget_peak(), time.monotonic()
        with _logged() as lines:
            try:
                result = read_study(path)
                said = " ".join((*result.warnings, result.study_uid, result.series_uid, result.kernel))
            except StudyError as error:
                result = said = str(error)
                assert "\n" not in result and len(result) < 1000, result
                if re.search(r"damaged (headers|DICOM header) \(", result):
                    self.unforeseen[_origin(error)] += 1
        seconds, grown = time.monotonic() - start, _peak() - before
        self.seen["volume" if isinstance(result, Volume) else "refused"] += 1
        self.slowest = max(self.slowest, (seconds, said[:200]))
        self.growth = max(self.growth, grown)
        assert seconds < SECONDS, (seconds, said)
        assert grown < BYTES, (grown, said)
        lowered = " ".join((said, *lines)).lower()
        assert not any(word in lowered for word in self._secrets), said
        return result

    def report(self, name: str, most_unforeseen: float = 0.01) -> None:
        """Prints the counts; fails where too large a share was refused for a reason that has no name."""
        total = self.seen.total()
        decoders = [_peak(decoder._process.pid) for decoder in codecs._idle]
        print(
            f"\n{name}: {total:,} mutants, {self.seen['volume']:,} read, {self.seen['refused']:,} refused; "
            f"slowest {self.slowest[0]:.2f} s; at most {self.growth / 2**20:.0f} MiB more, decoder "
            f"{max(decoders, default=0) / 2**20:.0f} MiB; {self.unforeseen.total()} for unforeseen reasons"
        )
        for origin, count in self.unforeseen.most_common(20):
            print(f"  {count:5d} {origin}")
        assert max(decoders, default=0) < BYTES
        assert self.unforeseen.total() <= most_unforeseen * total, self.unforeseen.most_common(5)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, removed, repeated or inserted; half of the time within the header."""
    mutant = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        end = len(mutant) if rng.random() < 0.5 else min(len(mutant), 1200)
        at, size = int(rng.integers(0, max(end, 1))), int(rng.integers(1, 9))
        kind = rng.integers(0, 6)
        if kind == 0:
            mutant[at : at + size] = rng.bytes(len(mutant[at : at + size]))
        elif kind == 1:
            mutant[at : at + size] = b"\xff" * len(mutant[at : at + size])
        elif kind == 2:
            del mutant[at : at + size]
        elif kind == 3:
            mutant[at:at] = mutant[at : at + 20 * size]
        elif kind == 4:
            mutant[at:at] = rng.bytes(size)
        else:
            del mutant[at + (len(mutant) - at) // 2 :]
    return bytes(mutant)


_VALUES = (
    *(b"", b"0", b"-0", b"-1", b"1", b"7", b"nan", b"-inf", b"1e400", b"1e-320", b"1e300", b"99999999999999999999"),
    *(
        b"1_0",
        b"0x10",
        b"1,5",
        b"1;2",
        b"\xd9\xa1",
        b"\0\0",
        b"\\",
        b"\\\\\\\\\\",
        b"1\\2\\3\\4\\5\\6\\7",
        b"\xff" * 40,
    ),
    *(b"0\\0\\0", b"nan\\nan\\nan", b"1e308\\-1e308\\1e308", b"99999\\0\\0", b"1\\0\\0\\1\\0\\0", b"0\\0\\0\\0\\0\\0"),
    *(b"1\\0\\0\\0\\0\\1", b"1e-9\\1e-9", b"1e9\\1e9", b"-1\\1", b"LOCALIZER", b"DERIVED\\SECONDARY", b"MONOCHROME1"),
    *(
        b"PALETTE COLOR",
        b"MR",
        b"1.2.840.10008.5.1.4.1.1.2.1",
        b"1.2.840.10008.5.1.4.1.1.7",
        b"FFS",
        b"HFDR",
        b"A" * 3000,
    ),
)
_NUMBERS = (0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 36, 255, 4096, 4097, 30000, 0x7FFF, 0x8000, 0xFFFF)
_FRAGILE = tuple(name for name in TAGS if name not in ("SOPInstanceUID", "StudyInstanceUID"))


def mutate_field(data: bytes, rng: np.random.Generator) -> bytes:
    """One element the reader uses gets a value it should not have; as `mutate` where the element is not there."""
    tag = TAGS[_FRAGILE[int(rng.integers(0, len(_FRAGILE)))]]
    for order in "<>":
        key = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
        at = data.find(key, 132)
        if at >= 0:
            break
    else:
        return mutate(data, rng)
    explicit = data[at + 4 : at + 6].isalpha()
    form, place = (order + "H", at + 6) if explicit else (order + "I", at + 4)
    start = place + struct.calcsize(form)
    old = struct.unpack_from(form, data, place)[0]
    if tag >> 16 == 0x28 and old == 2 and rng.random() < 0.9:
        value = struct.pack(order + "H", _NUMBERS[int(rng.integers(0, len(_NUMBERS)))])
    else:
        value = _VALUES[int(rng.integers(0, len(_VALUES)))]
        value += b" " * (len(value) % 2)
    return data[:place] + struct.pack(form, len(value)) + value + data[start + old :]


def run_series(fuzz: Fuzz, folders: Sequence[Path], count: int, seed: int) -> None:
    """Mutates one file of a series, or the same element of all its files, reads it, and puts it right again."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        files = sorted(folders[number % len(folders)].iterdir())
        kind = rng.random()
        if kind < 0.6:
            files = [files[int(rng.integers(0, len(files)))]]
        whole = {file: file.read_bytes() for file in files}
        change, draw = mutate if kind < 0.3 else mutate_field, int(rng.integers(0, 2**32))
        for file, data in whole.items():
            file.write_bytes(change(data, np.random.default_rng(draw)))
        fuzz.read(folders[number % len(folders)])
        for file, data in whole.items():
            file.write_bytes(data)


def made_series(folder: Path) -> list[Path]:
    """A three-slice series in every transfer syntax. The patient is SECRET-ID, Secret^Name."""
    hu = make_volume((3, 34, 36))
    for syntax in SYNTAXES:
        write_series(folder / syntax, hu, syntax=syntax)
    return [folder / syntax for syntax in SYNTAXES]


def made_enhanced(folder: Path) -> list[Path]:
    """The same as multi-frame images: in one file and in two, with every kind of offset table."""
    tables = itertools.cycle(("basic", "extended", "none"))
    made = made_series(folder / "single")
    for series, table in zip(made, tables, strict=False):
        for parts in (1, 2):
            to_enhanced(sorted(series.iterdir()), folder / f"{series.name}_{parts}", parts=parts, table=table)
    return [folder / f"{series.name}_{parts}" for series in made for parts in (1, 2)]


def real_series(folder: Path, most_pixels: int = 70_000) -> list[Path]:
    """Three copies of every small real monochrome image, moved apart and called CT: their coding reaches decoders."""
    made = []
    for number, path in enumerate(REAL_FILES):
        target = folder / f"{number}_{path.stem}"
        target.mkdir(parents=True)
        with warnings.catch_warnings(), contextlib.suppress(*_ODD):
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True)
            pixels = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames") or 1)
            if pixels < most_pixels and dataset.SamplesPerPixel == 1 and "PixelData" in dataset:
                for k in range(3):
                    dataset.Modality, dataset.SOPClassUID = "CT", "1.2.840.10008.5.1.4.1.1.2"
                    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
                    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
                    dataset.ImagePositionPatient, dataset.PixelSpacing = [0, 0, -2 * k], [1, 1]
                    dataset.save_as(target / f"{k + 1}.dcm")
        if len(list(target.iterdir())) == 3:
            made.append(target)
    return made


def real_secrets() -> set[str]:
    """Names and numbers of the real files' patients that no English message would hold by chance."""
    words: set[str] = set()
    for path in REAL_FILES:
        for keyword in ("PatientName", "PatientID"):
            with warnings.catch_warnings(), contextlib.suppress(*_ODD):
                warnings.simplefilter("ignore")
                text = str(pydicom.dcmread(path, force=True, specific_tags=[keyword])[keyword].value)
                words |= {word.lower() for word in re.split(r"[\^= ]", text) if len(word) >= 5 and not word.isdigit()}
    return words - {"modality", "patient", "first", "stroke"}  # words of messages and of paths


_ODD = (AttributeError, EOFError, KeyError, LookupError, OSError, TypeError, ValueError, InvalidDicomError)
"""What pydicom raises on some of these files, which are odd on purpose."""


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What any library logs meanwhile."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)


def _forget_peak() -> int:
    """Bytes resident now; `_peak` then tells the most since."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak since the start is an upper bound, and too high only for what came before
    return _peak()


def _peak(process: int | str = "self") -> int:
    """Most bytes ever resident (Linux; 0 elsewhere, where memory is not checked)."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return 1024 * int(text.partition("VmHWM:")[2].split()[0])


def _origin(error: BaseException) -> str:
    """Kind and place of the exception behind a refusal."""
    cause = error.__cause__ or error.__context__
    if cause is None:
        return str(error)
    frames = traceback.extract_tb(cause.__traceback__)
    ours = [frame for frame in frames if "cspine_jax" in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in (ours[-1], frames[-1])]
    return f"{type(cause).__name__} ({str(cause)[:60]}) at {' <- '.join(dict.fromkeys(places))}"
