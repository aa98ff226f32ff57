"""Reads state dicts: .safetensors, torch's files (`torch_file`) and .npz, by content rather than by name.

Nothing in a file is executed and memory stays in proportion to its size. The reader of .safetensors is our own: the
format is a JSON header and raw bytes, the library would be one more dependency, and a few lines check all that the
format promises (types, sizes, no gaps, no overlaps, no name twice).
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from cspine_jax.errors import DataError
from cspine_jax.models import torch_file
from cspine_jax.models.torch_pickle import MAX_RANK, MalformedError

FIX = "give a .safetensors file or what torch.save(model.state_dict(), ...) writes"

MAX_NAME = 500
MAX_MESSAGE = 300

PREFIXES = ("module.", "_orig_mod.", "model.")
"""Put before every name by DataParallel, `torch.compile` and training frameworks."""

_SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}

_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?s:..)\{'descr': '[<|]([fiub][1248])', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n"
)


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays by name, of the types and shapes they were saved with, backed by the file's bytes (read-only).

    Entries "state_dict", "model_state_dict" or "model" of a training checkpoint are opened, whatever else is in it left
    alone, and prefixes that all names share ("module.", "_orig_mod.", "model.") taken off.

    Args:
        path: a file.

    Raises:
        DataError: it cannot be read, is cut off, is of another format, or asks for code; one line says which.
    """
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; {FIX}") from error
    try:
        table = _parse(data)
        if not table:
            raise MalformedError("holds no arrays")
        if not all(name.isprintable() and len(name) <= MAX_NAME for name in table):
            raise MalformedError("holds arrays whose names cannot be printed on a line")
    except MalformedError as error:
        raise DataError(f"{path}: {str(error)[:MAX_MESSAGE]}; {FIX}") from error
    return _without_prefix(table)


def write_state_dict(path: str | Path, table: Mapping[str, np.ndarray]) -> None:
    """Writes float32 arrays, as .safetensors or .npz by the name's ending.

    Raises:
        DataError: another ending, or the file cannot be written.
    """
    path = Path(path).expanduser()
    table = {name: np.asarray(array, np.float32, order="C") for name, array in table.items()}
    try:
        if path.suffix == ".npz":
            with path.open("wb") as file:
                np.savez(file, **table)  # pyright: ignore[reportArgumentType]
        elif path.suffix == ".safetensors":
            header, at = {}, 0
            for name, array in table.items():
                header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
                at += array.nbytes
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)  # so that the arrays are aligned
            with path.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.writelines(array.astype("<f4").tobytes() for array in table.values())
        else:
            raise DataError(f"{path}: weights are written as .safetensors or .npz; give such a name")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; give a file in a folder that exists") from error


def _parse(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a file by name.

    Raises:
        MalformedError: see `read_state_dict`.
    """
    if not data:
        raise MalformedError("is empty")
    if data[8:9] == b"{":  # first, as the length before it may look like the beginning of any of the others
        return _from_safetensors(data)
    start = data[:64].lstrip()
    if start.startswith(b"<"):
        raise MalformedError("is a web page, not weights; the download went wrong")
    if start.startswith(b"version https://git-lfs"):
        raise MalformedError("only points to a file in git LFS; fetch that with `git lfs pull`")
    if data.startswith(b"PK"):
        return _from_zip(data)
    if data.startswith(b"\x80"):
        return torch_file.from_legacy(data)
    raise MalformedError("is no format of weights that is known here")


def _from_zip(data: bytes) -> dict[str, np.ndarray]:
    entries = torch_file.Archive(data)
    arrays = {name.removesuffix(".npy"): name for name in entries.names if name.endswith(".npy")}
    if arrays and len(arrays) == len(entries.names):
        return {name: _from_npy(name, entries.read(entry)) for name, entry in arrays.items()}
    return torch_file.from_archive(entries)


def _from_npy(name: str, data: bytes) -> np.ndarray:
    header = _NPY_HEADER.match(data)
    if header is None:
        raise MalformedError(f"holds {name!r}, which is no plain array of numbers")
    shape = tuple(int(side) for side in header[2].decode().replace(",", " ").split())
    dtype = np.dtype("<" + header[1].decode())
    if len(shape) > MAX_RANK or math.prod(shape) * dtype.itemsize != len(data) - header.end():
        raise MalformedError(f"is damaged: {name!r} has not the bytes that its shape needs")
    return np.frombuffer(data, dtype, offset=header.end()).reshape(shape)


def _from_safetensors(data: bytes) -> dict[str, np.ndarray]:
    start = 8 + int.from_bytes(data[:8], "little")
    if start > len(data):
        raise MalformedError(f"is cut off: its header should end at byte {start}, the file at {len(data)}")
    try:
        header = json.loads(data[8:start], object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"is no .safetensors file, its header cannot be read ({type(error).__name__})") from error
    header.pop("__metadata__", None)
    places = sorted(((*_place(name, entry), name) for name, entry in header.items()), key=lambda place: place[:2])
    table, at = {}, 0
    for begin, end, dtype, shape, name in places:
        if begin != at or start + end > len(data):
            cut = start + end > len(data)
            why = f"the file ends at byte {len(data)}" if cut else f"arrays overlap or leave a gap at byte {begin}"
            raise MalformedError(f"is {'cut off' if cut else 'damaged'} at {name!r}: {why}")
        table[name] = np.frombuffer(data, dtype, math.prod(shape), start + begin).reshape(shape)
        at = end
    if start + at != len(data):
        raise MalformedError(f"is damaged: {len(data) - start - at} bytes after the last array")
    return table


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _place(name: str, entry: Any) -> tuple[int, int, np.dtype, tuple[int, ...]]:
    """(first byte, end, type, shape) of an entry of a .safetensors header."""
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = [*shape, begin, end]
        whole = all(type(n) is int and 0 <= n < 2**63 for n in numbers) and len(shape) <= MAX_RANK
    except (KeyError, TypeError, ValueError):
        raise MalformedError(f"is damaged: its header says nothing sensible of {name!r}") from None
    if not isinstance(kind, str) or kind not in _SAFETENSORS:
        raise MalformedError(f"holds {name!r} as {kind!r}; known types are {', '.join(_SAFETENSORS)}")
    dtype = np.dtype(_SAFETENSORS[kind])
    if not whole or end - begin != math.prod(shape) * dtype.itemsize:
        raise MalformedError(f"is damaged: {name!r} has not the bytes that its shape needs")
    return begin, end, dtype, shape


def _without_prefix(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    while (common := next((p for p in PREFIXES if all(name.startswith(p) for name in table)), None)) is not None:
        table = {name.removeprefix(common): array for name, array in table.items()}
    return table
