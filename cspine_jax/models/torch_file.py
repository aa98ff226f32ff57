"""What `torch.save` writes, read without torch and without running anything: both its zip and its older format.

Either holds a pickle that describes the tensors (see `torch_pickle`), and their raw bytes.
"""

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from cspine_jax.models.torch_pickle import Machine, MalformedError, Storage, Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Entries of training checkpoints that hold the weights, in order of preference."""

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_DAMAGED_ZIP = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    OverflowError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    struct.error,
)


class Archive:
    """The entries of a zip file that holds them uncompressed, as torch and numpy write it.

    Args:
        data: the file.

    Raises:
        MalformedError: it is damaged, or would grow when unpacked.
    """

    def __init__(self, data: bytes):
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except _DAMAGED_ZIP as error:
            raise MalformedError("is cut off or damaged: a zip archive without its table of contents") from error
        entries = self._zip.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise MalformedError("is a compressed archive; neither torch nor numpy.savez write those")
        if sum(entry.file_size for entry in entries) > len(data):
            raise MalformedError("is damaged: the entries of its archive are larger than the file")
        self.names = [entry.filename for entry in entries]

    def read(self, name: str) -> bytes:
        """An entry.

        Raises:
            MalformedError: it is not there, or its checksum is wrong.
        """
        try:
            return self._zip.read(name)
        except KeyError as error:
            raise MalformedError(f"is damaged: no entry {name!r} in its archive") from error
        except _DAMAGED_ZIP as error:
            raise MalformedError(f"is damaged: entry {name!r} of its archive cannot be read") from error


def from_archive(archive: Archive) -> dict[str, np.ndarray]:
    """The arrays in a zip file of torch 1.6 and later.

    Raises:
        MalformedError: see `state_dict.read_state_dict`.
    """
    folders = [name.removesuffix("data.pkl") for name in archive.names if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise MalformedError("is a zip archive, but not one of torch")
    folder = folders[0]
    if f"{folder}constants.pkl" in archive.names:
        raise MalformedError("is a TorchScript program, not weights")
    if f"{folder}byteorder" in archive.names and archive.read(f"{folder}byteorder") != b"little":
        raise MalformedError("was written on a big-endian machine")
    value, _ = Machine(archive.read(f"{folder}data.pkl")).run(0)
    entries: dict[str, bytes] = {}

    def place(storage: Storage) -> tuple[bytes, int]:
        if storage.key not in entries:
            entries[storage.key] = archive.read(f"{folder}data/{storage.key}")
        return entries[storage.key], 0

    return _table(value, place)


def from_legacy(data: bytes) -> dict[str, np.ndarray]:
    """The arrays in a file of torch before 1.6: five pickles, then the storages.

    Raises:
        MalformedError: see `state_dict.read_state_dict`.
    """
    machine, at = Machine(data), 0
    values = []
    for expected in (_MAGIC, _PROTOCOL, None, None, None):
        value, at = machine.run(at)
        if expected is not None and value != expected:
            raise MalformedError("is a pickle, but not one of torch.save")
        values.append(value)
    _, _, system, value, keys = values
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise MalformedError("was written on a big-endian machine")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise MalformedError("is damaged: no list of its storages")
    storages, places = machine.storages, {}
    for key in keys:
        if key not in storages:
            raise MalformedError(f"is damaged: no tensor belongs to storage {key!r}")
        places[key] = at + 8
        at += 8 + storages[key].count * storages[key].dtype.itemsize
        if at > len(data):
            raise MalformedError(f"is cut off: storage {key!r} should end at byte {at}, the file at {len(data)}")
        if int.from_bytes(data[places[key] - 8 : places[key]], "little") != storages[key].count:
            raise MalformedError(f"is damaged: storage {key!r} has another size than its tensors say")

    def place(storage: Storage) -> tuple[bytes, int]:
        if storage.key not in places:
            raise MalformedError(f"is damaged: storage {storage.key!r} is missing")
        return data, places[storage.key]

    return _table(value, place)


def _table(value: Any, place: Callable[[Storage], tuple[bytes, int]]) -> dict[str, np.ndarray]:
    """The arrays of a state dict, or of a checkpoint that has one among other things; `place` finds a storage."""
    for _ in WRAPPERS:  # they are nested at times, and a dict may contain itself
        inner = [value[key] for key in WRAPPERS if isinstance(value, dict) and _has_tensors(value.get(key))]
        value = inner[0] if inner else value
    table = {}
    for name, tensor in value.items() if isinstance(value, dict) else ():
        if isinstance(name, str) and isinstance(tensor, Tensor):
            data, start = place(tensor.storage)
            if len(data) < start + tensor.storage.count * tensor.storage.dtype.itemsize:
                raise MalformedError(f"is cut off: storage {tensor.storage.key!r} is shorter than its tensors")
            table[name] = tensor.of(data, start)
    return table


def _has_tensors(value: Any) -> bool:
    """Whether a dict holds tensors, itself or in a wrapper."""
    if not isinstance(value, dict):
        return False
    wrapped = [value[key] for key in WRAPPERS if isinstance(value.get(key), dict)]
    return any(isinstance(x, Tensor) for each in (value, *wrapped) for x in each.values())
