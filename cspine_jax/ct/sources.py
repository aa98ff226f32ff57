"""Where a study's files lie: every container yields entries that can be opened, and nothing else knows which it was."""

import dataclasses
import os
from pathlib import Path
from typing import BinaryIO

from cspine_jax.ct import limits
from cspine_jax.errors import StudyError


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

    def open(self) -> BinaryIO:
        """Opens the file for reading; the caller closes it."""
        return open(self.name, "rb", buffering=16_384)


def entries(path: str | os.PathLike) -> list[Entry]:
    """Lists the files of a study.

    Args:
        path: a folder (searched through its sub-folders; links are not followed) or one file.

    Returns:
        The files in a stable order. Hidden files and empty folders are left out.

    Raises:
        StudyError: there is nothing at `path`, or too much.
    """
    root = Path(path)
    if root.is_file():
        return [_entry(root, root.stat().st_size)]
    if not root.is_dir():
        raise StudyError(f"{root}: no such file or folder; give the folder that holds the study's .dcm files")
    found: list[Entry] = []
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            listing = sorted(os.scandir(folder), key=lambda item: item.name)
        except OSError as error:
            raise StudyError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from None
        for item in listing:
            if item.name.startswith("."):
                continue
            if item.is_dir(follow_symlinks=False):
                waiting.append(Path(item.path))
            elif item.is_file():
                found.append(_entry(Path(item.path), item.stat().st_size))
                if len(found) > limits.MAX_FILES:
                    raise StudyError(
                        f"{root}: more than {limits.MAX_FILES:,} files; give the folder of one study, not of many"
                    )
    if not found:
        raise StudyError(f"{root}: no files in this folder; give the folder that holds the study's .dcm files")
    return found


def _entry(path: Path, size: int) -> Entry:
    return Entry(name=str(path), stem=path.stem, suffix=path.suffix.lower(), size=size)
