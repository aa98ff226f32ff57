"""Where a study's files lie: every container yields entries that can be opened, and nothing else knows which it was."""

import dataclasses
import io
import lzma
import mmap
import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

from cspine_jax.ct import limits
from cspine_jax.errors import StudyError

READ_ERRORS = (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError)
"""What opening or reading an entry may raise."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file of a study.

    Attributes:
        name: how messages name it: the path as a user would type it.
        stem: file name without folders and suffix ("12" of `12.dcm`).
        suffix: lower-case suffix with its dot, "" where absent.
        size: bytes.
    """

    name: str
    stem: str
    suffix: str
    size: int

    @property
    def path(self) -> str | None:
        """The plain file other processes can open; None where there is none."""
        return self.name

    def open(self) -> IO[bytes]:
        """Opens the file for reading, seekable; the caller closes it."""
        return open(self.name, "rb", buffering=16_384)


@dataclasses.dataclass(frozen=True)
class ZipEntry(Entry):
    """A member of a zip archive: inflated while it is read, never unpacked to disk."""

    archive: zipfile.ZipFile
    member: zipfile.ZipInfo

    @property
    def path(self) -> None:
        """No plain file."""
        return None

    def open(self) -> IO[bytes]:
        """Opens the member; several may be open at a time."""
        return self.archive.open(self.member)


@dataclasses.dataclass(frozen=True)
class MemoryEntry(Entry):
    """A file that was inflated into memory: many frames are read from it, and what inflates does not seek."""

    held: list[mmap.mmap] = dataclasses.field(repr=False)

    @classmethod
    def inflated(cls, entry: Entry, file: IO[bytes], size: int) -> "MemoryEntry":
        """Takes in `size` bytes of an open file, or fewer where it ends before."""
        memory = mmap.mmap(-1, max(size, 1))
        at = 0
        with memoryview(memory) as view:
            while at < size and (piece := file.read(min(1 << 20, size - at))):
                view[at : at + len(piece)] = piece
                at += len(piece)
        return cls(entry.name, entry.stem, entry.suffix, at, [memory])

    @property
    def path(self) -> None:
        """No plain file."""
        return None

    def open(self) -> IO[bytes]:
        """Opens the bytes; several may read them at a time."""
        if not self.held:
            raise OSError("its bytes were let go of")
        return io.BufferedReader(_MemoryReader(self.held[0], self.size), 16_384)

    def release(self) -> None:
        """Lets go of the bytes."""
        self.held.clear()


class _MemoryReader(io.RawIOBase):
    """Reads memory as a file, without a copy of it."""

    def __init__(self, memory: mmap.mmap, size: int):
        self._view, self._at = memoryview(memory)[:size], 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(offset + (0, self._at, len(self._view))[whence], 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        piece = self._view[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def entries(path: str | os.PathLike) -> list[Entry]:
    """Lists the files of a study.

    Args:
        path: a folder (searched through its sub-folders; links to folders are not followed), a zip archive, a
            DICOMDIR (its folder is searched) or one file.

    Returns:
        The files in a stable order. Hidden files and empty folders are left out.

    Raises:
        StudyError: there is nothing at `path`, or too much.
    """
    root = Path(path)
    if root.name.upper() == "DICOMDIR" and root.is_file():
        root = root.parent
    try:
        if root.is_dir():
            found = _folder(root)
        elif root.is_file():
            found = _zip(root) if zipfile.is_zipfile(root) else [_entry(root, root.stat().st_size)]
        elif os.path.lexists(root):
            raise StudyError(f"{root}: neither a file nor a folder; give the folder that holds the study's .dcm files")
        else:
            raise StudyError(f"{root}: no such file or folder; give the folder that holds the study's .dcm files")
    except OSError as error:
        raise StudyError(f"{root}: cannot be listed ({error.strerror or error}); check its permissions") from None
    if not found:
        raise StudyError(f"{root}: no files in it; give the folder that holds the study's .dcm files")
    return found


def _folder(root: Path) -> list[Entry]:
    found: list[Entry] = []
    waiting = [root]
    while waiting:
        for item in sorted(os.scandir(waiting.pop()), key=lambda item: item.name):
            if item.name.startswith("."):
                continue
            if item.is_dir(follow_symlinks=False):
                waiting.append(Path(item.path))
                continue
            status = item.stat() if item.is_file() else None
            if status and stat.S_ISREG(status.st_mode):  # pipes and devices would never end
                found.append(_entry(Path(item.path), status.st_size))
            if len(found) + len(waiting) > limits.MAX_FILES:
                raise StudyError(
                    f"{root}: more than {limits.MAX_FILES:,} files; give the folder of one study, not of many"
                )
    return found


def _zip(root: Path) -> list[Entry]:
    try:
        archive = zipfile.ZipFile(root)
        members = [member for member in archive.infolist() if not member.filename.endswith("/")]
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
        raise StudyError(f"{root}: damaged zip archive ({' '.join(str(error).split())}); copy it again") from None
    if len(members) > limits.MAX_FILES:
        raise StudyError(f"{root}: {len(members):,} files in it, at most {limits.MAX_FILES:,}; zip one study")
    total = sum(member.file_size for member in members)
    if total > limits.MAX_ARCHIVE_BYTES:
        raise StudyError(
            f"{root}: unpacks to {total / 2**30:.1f} GiB, at most {limits.MAX_ARCHIVE_BYTES >> 30}; zip one study"
        )
    found: list[Entry] = []
    for member in sorted(members, key=lambda member: member.filename):
        inside = "".join(c if c.isprintable() else "?" for c in member.filename)
        path = Path(inside.replace("\\", "/"))
        if path.name.startswith((".", "._")) or "__MACOSX" in path.parts:
            continue
        name = f"{root}:{inside}"
        if member.flag_bits & 0x1:
            raise StudyError(f"{name}: encrypted; unpack the archive with its password and give the folder")
        if member.file_size > limits.MAX_RATIO * max(member.compress_size, 1024):
            raise StudyError(
                f"{name}: {member.file_size:,} bytes packed in {member.compress_size:,}; not a CT, remove it"
            )
        found.append(ZipEntry(name, path.stem, path.suffix.lower(), member.file_size, archive, member))
    return found


def _entry(path: Path, size: int) -> Entry:
    return Entry(name=str(path), stem=path.stem, suffix=path.suffix.lower(), size=size)
