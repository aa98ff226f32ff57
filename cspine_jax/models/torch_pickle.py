"""Runs the pickles in torch's files on a machine that can do nothing but describe tensors.

A pickle is a program for a small stack machine whose instructions may import and call anything. This machine has only
the instructions that a state dict needs, knows a handful of names, and makes nothing but numbers, strings, tuples,
lists, dicts and tensors. (Python's own unpickler with a filter on names would still let a few bytes reserve gigabytes.)
"""

import dataclasses
import math
import pickle  # for the names of its instructions; nothing is unpickled
import struct
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

T = TypeVar("T")

MAX_RANK = 32

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

_VALUES = {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}
"""`torch.float32` and its like: some checkpoints have them beside the weights; they stay names."""

_REBUILD = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"}

_ALLOWED = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    *_REBUILD,
    *(f"torch.{name}" for name in (*_STORAGES, *_VALUES)),
}


class MalformedError(Exception):
    """A file of weights cannot be read; the message completes "FILE ..."."""


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name of `_ALLOWED`, met in a pickle."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers in a row, elsewhere in the file."""

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; sizes and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, data: bytes, start: int) -> np.ndarray:
        """The array, given that the storage begins at byte `start` of `data`."""
        size = self.storage.dtype.itemsize
        strides = tuple(size * stride for stride in self.strides)
        return np.ndarray(self.shape, self.storage.dtype, data, start + size * self.offset, strides)


class Machine:
    """Runs pickles that describe state dicts.

    Args:
        data: the pickle, or several one after another.
    """

    def __init__(self, data: bytes):
        self.data = data
        self.storages: dict[str, Storage] = {}
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, start: int) -> tuple[Any, int]:
        """The object of the pickle at byte `start`, and where the pickle ends.

        Raises:
            MalformedError: an instruction or a name that no state dict needs; a damaged pickle.
        """
        self._at, self._stack, self._marks, self._memo = start, [], [], {}
        try:
            while True:
                code = self._take(1)
                if code == pickle.STOP:
                    return self._stack.pop(), self._at
                self._step(code)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
            # a damaged pickle may do anything with anything, but only to the values above
            raise MalformedError(f"is damaged: its pickle makes no sense at byte {self._at}") from error

    def _take(self, count: int) -> bytes:
        taken = self.data[self._at : self._at + count]
        if len(taken) < count:
            raise MalformedError("is cut off in the middle of its pickle")
        self._at += count
        return taken

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self.data.index(b"\n", self._at, self._at + 200)
        return self._take(end + 1 - self._at)[:-1].decode()

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _step(self, code: bytes) -> None:
        stack = self._stack
        match code:
            case pickle.PROTO:
                self._take(1)
            case pickle.FRAME:
                self._take(8)
            case pickle.MARK:
                self._marks.append(stack)
                self._stack = []
            case pickle.NONE:
                stack.append(None)
            case pickle.NEWTRUE:
                stack.append(True)
            case pickle.NEWFALSE:
                stack.append(False)
            case pickle.BININT:
                stack.append(self._number("<i"))
            case pickle.BININT1:
                stack.append(self._number("<B"))
            case pickle.BININT2:
                stack.append(self._number("<H"))
            case pickle.LONG1:
                stack.append(int.from_bytes(self._take(self._number("<B")), "little", signed=True))
            case pickle.BINFLOAT:
                stack.append(self._number(">d"))
            case pickle.BINUNICODE | pickle.BINSTRING:
                stack.append(self._take(self._number("<I")).decode())
            case pickle.SHORT_BINUNICODE | pickle.SHORT_BINSTRING:
                stack.append(self._take(self._number("<B")).decode())
            case pickle.EMPTY_TUPLE:
                stack.append(())
            case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                count = 1 + (pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3).index(code)
                stack[-count:] = [_of_length(stack[-count:], count)]
            case pickle.TUPLE:
                items = self._since_mark()
                self._stack.append(tuple(items))
            case pickle.EMPTY_LIST:
                stack.append([])
            case pickle.APPEND:
                item = stack.pop()
                _kind(stack[-1], list).append(item)
            case pickle.APPENDS:
                items = self._since_mark()
                _kind(self._stack[-1], list).extend(items)
            case pickle.EMPTY_DICT:
                stack.append({})
            case pickle.SETITEM:
                value, key = stack.pop(), stack.pop()
                _kind(stack[-1], dict)[_simple(key)] = value
            case pickle.SETITEMS:
                items = self._since_mark()
                pairs = zip(items[::2], items[1::2], strict=True)
                _kind(self._stack[-1], dict).update((_simple(key), value) for key, value in pairs)
            case pickle.BINPUT | pickle.LONG_BINPUT:
                self._memo[self._number("<B" if code == pickle.BINPUT else "<I")] = stack[-1]
            case pickle.MEMOIZE:
                self._memo[len(self._memo)] = stack[-1]
            case pickle.BINGET | pickle.LONG_BINGET:
                stack.append(self._memo[self._number("<B" if code == pickle.BINGET else "<I")])
            case pickle.GLOBAL:
                stack.append(_allowed(self._line(), self._line()))
            case pickle.STACK_GLOBAL:
                name, module = stack.pop(), stack.pop()
                stack.append(_allowed(_kind(module, str), _kind(name, str)))
            case pickle.REDUCE:
                arguments, function = stack.pop(), stack.pop()
                stack.append(_called(_kind(function, _Global).name, _kind(arguments, tuple)))
            case pickle.BUILD:  # attributes of an OrderedDict: versions of torch's modules
                _kind(stack.pop(), dict)
                _kind(stack[-1], dict)
            case pickle.BINPERSID:
                stack.append(self._storage(*_kind(stack.pop(), tuple)))
            case _:
                raise MalformedError(f"is no state dict: its pickle has instruction {code!r} at byte {self._at - 1}")

    def _storage(self, kind: str, storage: Any, key: str, location: str, count: int, view: None = None) -> Storage:
        """What torch calls persistent ids: ("storage", type, key, device, number of elements)."""
        del location
        dtype = np.dtype(_STORAGES[_kind(storage, _Global).name.removeprefix("torch.")])
        if kind != "storage" or view is not None or type(count) is not int or count < 0:
            raise ValueError
        found = Storage(_kind(key, str), dtype, count)
        if self.storages.setdefault(key, found) != found:
            raise ValueError
        return found


def _allowed(module: str, name: str) -> _Global:
    """A name, if it is one of the few that state dicts need."""
    full = f"{module}.{name}"
    if full not in _ALLOWED:
        shown = full if full.isprintable() and len(full) <= 100 else ascii(full)[:100]
        raise MalformedError(
            f"is refused: its pickle asks for {shown}, which no state dict needs (nothing was executed)"
        )
    return _Global(full)


def _called(function: str, arguments: tuple) -> Any:
    """The result of the few functions that state dicts need."""
    if function in _REBUILD:
        return _tensor(*arguments[:4])
    if function == "torch._utils._rebuild_parameter":
        return _kind(arguments[0], Tensor)
    if function == "torch.Size":
        return tuple(_kind(arguments[0], tuple))
    if function == "collections.OrderedDict":
        pairs = _kind(arguments[0], list) if arguments else []  # Python 2 gave the items here
        return {_simple(key): value for key, value in pairs}
    raise ValueError


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    count = _kind(storage, Storage).count
    numbers = (offset, *_kind(shape, tuple), *_kind(strides, tuple))
    if len(shape) != len(strides) or len(shape) > MAX_RANK or not all(type(n) is int and 0 <= n for n in numbers):
        raise ValueError
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    size = math.prod(shape)
    if size > count or (size and last >= count):
        raise MalformedError(f"is damaged: a tensor of shape {list(shape)} reaches beyond its storage of {count}")
    return Tensor(storage, offset if size else 0, shape, strides if size else (0,) * len(shape))


def _simple(key: Any) -> Any:
    """A dict's key: only what hashes in constant time."""
    if not isinstance(key, str | int | float | None):
        raise TypeError
    return key


def _kind(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _of_length(items: list[Any], count: int) -> tuple[Any, ...]:
    if len(items) != count:
        raise IndexError
    return tuple(items)
