"""State dicts are read as they were written; whatever else comes is refused in a line, and nothing of it is run."""

import io
import json
import pickle
import struct
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from cspine_jax.errors import DataError
from cspine_jax.models.state_dict import read_state_dict, write_state_dict
from tests.models.torch_files import (
    ORDERED,
    REBUILD,
    Call,
    Global,
    Persistent,
    Raw,
    as_legacy,
    as_zip,
    both,
    described,
    emitted,
    pickled,
    sample,
    storage_id,
    tensor,
    zipped,
)

SAFE_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32"}
SAFE_NAMES |= {"int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}


def safetensors(table):
    header, raw = {"__metadata__": {"format": "pt"}}, b""
    for name, array in table.items():
        offsets = [len(raw), len(raw) + array.nbytes]
        header[name] = {"dtype": SAFE_NAMES[array.dtype.name], "shape": array.shape, "data_offsets": offsets}
        raw += array.tobytes()
    return safe(header, raw)


def safe(header, raw=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw


def npz(table):
    buffer = io.BytesIO()
    np.savez(buffer, **table)
    return buffer.getvalue()


def read(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    return read_state_dict(tmp_path / "w")


def refused(tmp_path, content, match):
    with pytest.raises(DataError, match=match) as error:
        read(tmp_path, content)
    message = str(error.value)
    assert message.startswith(str(tmp_path / "w")) and message.isprintable() and len(message) < 600
    assert message.endswith("give a .safetensors file or what torch.save(model.state_dict(), ...) writes")


def assert_same(got, expected):
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape, name
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "npz"])
def test_every_type_and_shape(tmp_path, kind):
    table = sample()
    if kind == "npz":
        del table["layer.bfloat16"]  # which numpy itself cannot write
    files = {**both(table), "safetensors": safetensors(table), "npz": npz({k: table[k] for k in table if "b" != k})}
    assert_same(read(tmp_path, files[kind]), table)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_what_is_written_is_what_is_read(tmp_path, ending):
    table = {name: array.astype(np.float32) for name, array in sample().items()}
    write_state_dict(tmp_path / f"w.{ending}", table)
    assert_same(read_state_dict(tmp_path / f"w.{ending}"), table)


def test_other_endings_and_folders_are_not_written(tmp_path):
    with pytest.raises(DataError, match=r"written as \.safetensors or \.npz"):
        write_state_dict(tmp_path / "w.pth", {})
    with pytest.raises(DataError, match="No such file or directory; give a file in a folder that exists"):
        write_state_dict(tmp_path / "none" / "w.npz", {})


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_checkpoints_are_opened_and_prefixes_taken_off(tmp_path, kind):
    table = {"a.weight": np.ones(3, np.float32), "b": np.zeros((2, 2), np.float32)}
    named = {f"module.model.{name}": array for name, array in table.items()}
    best = tensor("0", np.ones(3, np.float32))

    def wrap(tensors):
        inner = Call(Global("torch._utils", "_rebuild_parameter"), (tensors["module.model.a.weight"], True, None))
        state = {**tensors, "module.model.a.weight": inner, "note": "text"}
        return {"epoch": 3, "best": best, "dtype": Global("torch", "float32"), "state_dict": {"model": state}}

    assert_same(read(tmp_path, both(named, wrap)[kind]), table)


def test_an_ordered_dict_with_attributes_and_the_pairs_of_python_2(tmp_path):
    tensors, storages = described({"a": np.arange(3.0), "b": np.arange(2)})
    filled = emitted(Call(ORDERED, ())) + emitted(tensors).replace(b"}", b"", 1)
    attributes = {"_metadata": Call(ORDERED, ())}
    for value in (Raw(filled + emitted(attributes) + b"b"), Call(ORDERED, ([[*pair] for pair in tensors.items()],))):
        assert list(read(tmp_path, as_zip(value, storages))) == ["a", "b"]


def test_views_share_their_storage(tmp_path):
    base = np.arange(12, dtype=np.float32)
    where = storage_id("0", np.float32, 12)
    views = {
        "transposed": Call(REBUILD, (where, 0, (4, 3), (1, 4), False, None)),
        "part": Call(Global("torch._utils", "_rebuild_tensor"), (where, 5, (2,), (3,))),
    }
    for content in (as_zip(views, {"0": base.tobytes()}), as_legacy(views, {"0": base.tobytes()}, {"0": 4})):
        got = read(tmp_path, content)
        np.testing.assert_array_equal(got["transposed"], base.reshape(3, 4).T)
        np.testing.assert_array_equal(got["part"], base[5:11:3])


@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_itself_writes(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)).bfloat16()
    net[2].weight.data = net[2].weight.data.float().T.contiguous().T
    checkpoint = {"epoch": 1, "sizes": net[0].weight.shape, "state_dict": net.state_dict()}
    torch.save(checkpoint, tmp_path / "w", _use_new_zipfile_serialization=not legacy)
    got = read_state_dict(tmp_path / "w")
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(got[name].astype(np.float64), value.double().numpy())
        assert got[name].shape == tuple(value.shape)
    assert got["0.weight"].dtype == jnp.bfloat16
    torch.save(net, tmp_path / "w", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        DataError, match=r"asks for torch\.nn\.modules\.container\.Sequential, which no state dict needs"
    ):
        read_state_dict(tmp_path / "w")


def test_what_safetensors_itself_writes(tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="needs the extra [parity]")
    table = sample()
    library.save_file(table, tmp_path / "w", {"note": "of the library"})
    got = read_state_dict(tmp_path / "w")
    assert_same({name: got[name] for name in table}, table)
    write_state_dict(tmp_path / "w.safetensors", {"a": table["layer.float32"]})
    assert_same(library.load_file(tmp_path / "w.safetensors"), {"a": table["layer.float32"]})


class Trap:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.marker}",)


def traps(marker):
    """Objects that run code in Python's own unpickler."""
    write = f"open({str(marker)!r}, 'w').close()"
    system = Global("posix", "system")
    innocent = tensor("0", np.ones(1, np.float32))
    yield Call(system, (f"touch {marker}",))
    yield Call(Global("builtins", "eval"), (write,))
    yield Call(Global("builtins", "exec"), (write,))
    yield {"w": innocent, "state_dict": {"w": Call(Global("builtins", "eval"), (write,))}}
    yield {"w": Call(REBUILD, (Persistent(("storage", Call(system, (f"touch {marker}",)), "0", "cpu", 1)), 0, (), ()))}
    yield {
        "w": Call(REBUILD, (storage_id("0", np.float32, 1), 0, (1,), Call(system, (f"touch {marker}",)), False, None))
    }
    yield Call(Call(Global("builtins", "getattr"), (Global("os", "path"), "os")), ())
    yield Call(Global("torch._utils", "_rebuild_tensor_v2.__globals__"), ())
    yield Call(Global("torch", "FloatStorage"), (system,))
    yield Call(Global("torch", "load"), (str(marker),))
    yield Call(Global("collections", "OrderedDict.fromkeys"), ())
    yield Raw(b"(" + emitted("touch") + b"iposix\nsystem\n")  # INST
    yield Raw(b"(" + emitted(system) + emitted(f"touch {marker}") + b"o")  # OBJ
    yield Raw(emitted(system) + emitted((f"touch {marker}",)) + b"\x81")  # NEWOBJ
    yield Raw(emitted("posix") + emitted("system") + b"\x93" + emitted((f"touch {marker}",)) + b"R")  # STACK_GLOBAL
    yield Raw(b"\x82\x01")  # EXT1
    yield Raw(emitted(innocent) + emitted({"__class__": system}) + b"b")  # BUILD
    yield Raw(b"P0\n")  # PERSID


def test_nothing_in_a_pickle_is_executed(tmp_path):
    marker = tmp_path / "executed"
    for trap in traps(marker):
        for content in (as_zip(trap, {"0": b"\0\0\0\0"}), as_legacy(trap, {"0": b"\0\0\0\0"}, {"0": 4}), pickled(trap)):
            refused(tmp_path, content, "is refused|is no state dict|is damaged|not one of torch.save|holds no arrays")
            assert not marker.exists()
    for protocol in range(2, 6):
        plain = pickle.dumps(Trap(marker), protocol)
        refused(tmp_path, plain, r"asks for posix\.system, which no state dict needs \(nothing was executed\)")
        refused(tmp_path, zipped({"data.pkl": plain}), r"asks for posix\.system")
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([Trap(marker)], object), allow_pickle=True)
    refused(tmp_path, buffer.getvalue(), "holds 'a', which is no plain array of numbers")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Trap(marker)))
    assert marker.exists()  # the trap is one


def deep(levels):
    return Raw(b"]" * levels + b"a" * (levels - 1))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (Raw(b"Nr\xff\xff\xff\x7f0"), "instruction"),  # a memo of two thousand million places
        (Raw(b"X\xff\xff\xff\xff"), "cut off in the middle of its pickle"),
        (Raw(b"\x8e" + b"\xff" * 7 + b"\x7f"), "instruction"),  # BINBYTES8
        (deep(100_000), "holds no arrays"),
        (Call(REBUILD, (storage_id("0", np.float32, 1), 0, (2**40,), (0,), False, None)), "reaches beyond its storage"),
        (Call(REBUILD, (storage_id("0", np.float32, 1), 0, (2**70, 0), (1, 1), False, None)), "holds no arrays"),
        (Call(REBUILD, (storage_id("0", np.float32, 1), 0, (1,) * 33, (1,) * 33, False, None)), "makes no sense"),
        (
            Call(REBUILD, (storage_id("0", np.float32, 4), 2, (2,), (2,), False, None)),
            "reaches beyond its storage of 4",
        ),
        (Call(REBUILD, (storage_id("0", np.float32, 4), -1, (2,), (1,), False, None)), "makes no sense"),
        (Call(REBUILD, (storage_id("0", np.float32, 4), 3, (2,), (-1,), False, None)), "makes no sense"),
        ({"w": tensor("0", np.ones(2**20, np.float32))}, "cut off"),
        ({("a",): 1}, "makes no sense"),
        ({"w": tensor("0", np.ones(1, np.float32)), "v": tensor("0", np.ones(1))}, "makes no sense"),
    ],
)
def test_hostile_sizes_cost_nothing(tmp_path, value, match):
    for content in (as_zip(value, {"0": b"\0\0\0\0"}), as_legacy(value, {"0": b"\0\0\0\0"}, {"0": 4})):
        tracemalloc.start()
        refused(tmp_path, content, f"{match}|no tensor belongs to storage|has another size")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000 + 200 * len(content)


def test_dicts_that_hold_themselves_or_each_other(tmp_path):
    inner = b"}" + b"q\x00"
    for _ in range(60):  # doubled at every level, if it were unfolded
        inner = b"}(" + emitted("state_dict") + inner + emitted("model") + b"h\x00u" + b"q\x00"
    refused(tmp_path, as_zip(Raw(inner), {}), "holds no arrays")
    refused(tmp_path, as_zip(Raw(b"}q\x00(" + emitted("model") + b"h\x00u"), {}), "holds no arrays")


def test_archives_that_grow_are_refused(tmp_path):
    tensors, _ = described({"w": np.zeros(2**20, np.float32)})
    bomb = zipped({"data.pkl": pickled(tensors), "data/0": bytes(2**22)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10_000
    refused(tmp_path, bomb, "is a compressed archive")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for k in range(5):
            file.writestr(f"a/{k}", bytes(1000))
        for entry in file.filelist[1:]:
            entry.header_offset = file.filelist[0].header_offset
            file.filelist[0].file_size = 4000
    refused(tmp_path, buffer.getvalue(), "larger than the file")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x1f\x8b\x08 something else", "is no format of weights that is known here"),
        (b"PK\x03\x04 cut off", "is cut off or damaged"),
        (zipped({"other": b""}), "is a zip archive, but not one of torch"),
        (zipped({"data.pkl": pickled({}), "constants.pkl": b""}), "is a TorchScript program"),
        (as_zip({}, {}, byteorder=b"big"), "big-endian"),
        (as_legacy({}, {}, {}, little=False), "big-endian"),
        (as_zip(3, {}), "holds no arrays"),
        (as_zip({"epoch": 3, "state_dict": {}}, {}), "holds no arrays"),
        (pickle.dumps({"a": 1}, 2), "is a pickle, but not one of torch.save"),
        (as_zip({"a\nb": tensor("0", np.ones(1))}, {"0": bytes(8)}), "names cannot be printed"),
        (as_zip({"a": tensor("0", np.ones(1))}, {}), "no entry 'archive/data/0'"),
        (as_legacy({"a": tensor("0", np.ones(1))}, {}, {}), "storage '0' is missing"),
        (as_zip({"a": tensor("0" * 9999, np.ones(1))}, {}), "no entry"),
        (safe(b"{" + b"[" * 99999), "header cannot be read"),
        (safe(b'{"a": 1, "a": 1}'), "header cannot be read"),
        (struct.pack("<Q", 2**63) + b"{}", "its header should end at byte"),
        (safe({"a": {"dtype": "F32", "shape": [1]}}), "says nothing sensible of 'a'"),
        (safe({"a": 3}), "says nothing sensible of 'a'"),
        (safe({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)), "as 'C64'; known types"),
        (safe({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, bytes(4)), "not the bytes"),
        (safe({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4)), "not the bytes"),
        (safe({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)), "not the bytes"),
        (safe({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)), "is cut off at 'a'"),
        (safe({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)), "leave a gap at byte 4"),
        (safe({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(8)), "4 bytes after the last array"),
        (
            safe({n: {"dtype": "U8", "shape": [4], "data_offsets": [k, 4 + k]} for k, n in enumerate("ab")}, bytes(5)),
            "arrays overlap",
        ),
        (safe({}), "holds no arrays"),
    ],
)
def test_what_is_no_state_dict_is_refused_in_a_line(tmp_path, content, match):
    refused(tmp_path, content, match)


def test_what_is_no_file(tmp_path):
    with pytest.raises(DataError, match="Is a directory; give a"):
        read_state_dict(tmp_path)
    with pytest.raises(DataError, match="No such file or directory; give a"):
        read_state_dict(tmp_path / "none.pth")


FORMATS = {
    **both(sample(), lambda tensors: {"state_dict": tensors}),
    "safetensors": safetensors(sample()),
    "npz": npz({"a": np.ones((2, 3), np.float32), "b": np.zeros(4)}),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_off_anywhere_is_refused(tmp_path, kind):
    whole = FORMATS[kind]
    for end in {*range(0, len(whole) - 1, max(1, len(whole) // 300)), len(whole) - 1}:
        with pytest.raises(DataError) as error:
            read(tmp_path, whole[:end])
        assert str(error.value).isprintable()


def damaged(content, rng):
    content = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        at, how = int(rng.integers(len(content))), rng.integers(4)
        if how == 0:
            content[at] = int(rng.integers(256))
        elif how == 1:
            content[at] ^= 1 << int(rng.integers(8))
        elif how == 2:
            del content[at : at + int(rng.integers(1, 20))]
        else:
            content[at:at] = content[: int(rng.integers(1, 20))]
    return bytes(content)


@pytest.mark.parametrize("kind", [*FORMATS, "pickle"])
def test_damaged_files_are_read_or_refused_and_never_more(tmp_path, kind):
    rng = np.random.default_rng(0)
    tensors, storages = described(sample())
    for _ in range(300):
        if kind == "pickle":  # in an archive whose checksums are right
            entries = {f"data/{key}": x for key, x in storages.items()}
            content = zipped({"data.pkl": damaged(pickled(tensors), rng), **entries})
        else:
            content = damaged(FORMATS[kind], rng)
        try:
            read(tmp_path, content)
        except DataError as error:
            assert str(error).isprintable()
