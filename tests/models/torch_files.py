"""Writes what `torch.save` writes, instruction by instruction, so that the reader is tested where there is no torch."""

import io
import struct
import zipfile
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Global(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Any
    arguments: Any


class Persistent(NamedTuple):
    identity: Any


class Raw(NamedTuple):
    """Instructions as they are."""

    code: bytes


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
ORDERED = Global("collections", "OrderedDict")


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + emitted(value) + b"."


def emitted(value: Any) -> bytes:
    match value:
        case Raw(code):
            return code
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return emitted(function) + emitted(arguments) + b"R"
        case Persistent(identity):
            return emitted(identity) + b"Q"
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
            return b"\x8a" + bytes([len(raw)]) + raw
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(emitted, value)) + b"t"
        case list():
            return b"](" + b"".join(map(emitted, value)) + b"e"
        case dict():
            return b"}(" + b"".join(emitted(key) + emitted(x) for key, x in value.items()) + b"u"
    raise TypeError(value)


def storage_id(key: str, dtype: Any, count: int) -> Persistent:
    return Persistent(("storage", Global("torch", STORAGES[np.dtype(dtype).name]), key, "cpu", count))


def tensor(key: str, array: np.ndarray) -> Call:
    """A contiguous tensor that is all of its storage."""
    strides = tuple(s // array.itemsize for s in np.empty(array.shape, array.dtype).strides)
    hooks = Call(ORDERED, ())
    return Call(REBUILD, (storage_id(key, array.dtype, array.size), 0, array.shape, strides, False, hooks))


def described(table: dict[str, np.ndarray]) -> tuple[Any, dict[str, bytes]]:
    """The object to pickle, and the storages."""
    tensors = {name: tensor(str(i), array) for i, (name, array) in enumerate(table.items())}
    return tensors, {str(i): array.tobytes() for i, array in enumerate(table.values())}


def as_zip(value: Any, storages: dict[str, bytes], **files: bytes) -> bytes:
    entries = {"data.pkl": pickled(value), "byteorder": b"little", **{f"data/{k}": x for k, x in storages.items()}}
    return zipped({**entries, "version": b"3\n", **files})


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def as_legacy(value: Any, storages: dict[str, bytes], sizes: dict[str, int], little: bool = True) -> bytes:
    """`sizes`: bytes of an element of each storage."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little}, value, list(storages)]
    raw = (struct.pack("<q", len(x) // sizes[key]) + x for key, x in storages.items())
    return b"".join(map(pickled, parts)) + b"".join(raw)


def sample() -> dict[str, np.ndarray]:
    """An array of every type, and of none, one and no elements."""
    rng = np.random.default_rng(0)
    table = {
        f"layer.{name}": np.round(10 * rng.random((2, 3))).astype(jnp.bfloat16 if name == "bfloat16" else name)
        for name in STORAGES
    }
    return {**table, "scalar": np.array(3.0, np.float32), "empty": np.zeros((0, 4), np.float32)}


def both(table: dict[str, np.ndarray], wrap: Any = lambda tensors: tensors) -> dict[str, bytes]:
    """The table in either format of torch; `wrap` puts other things around it."""
    tensors, storages = described(table)
    sizes = {str(i): array.itemsize for i, array in enumerate(table.values())}
    return {"zip": as_zip(wrap(tensors), storages), "legacy": as_legacy(wrap(tensors), storages, sizes)}
