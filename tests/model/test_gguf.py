"""GGUF files: ours against the `gguf` library, and files from strangers."""

from __future__ import annotations

import struct
import tracemalloc
import warnings

import gguf
import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyorder.core.errors import CheckpointError
from anyorder.model.backends import native
from anyorder.model.gguf import GGUFFile
from anyorder.model.gguf_quantization import READABLE, TYPES


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def header(num_tensors: int, num_pairs: int, *, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, num_tensors, num_pairs)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    layout = f"<I{len(shape)}QIQ"
    return text(name) + struct.pack(layout, len(shape), *shape, kind, offset)


def pad(data: bytes, to: int = 32) -> bytes:
    return data + bytes(-len(data) % to)


@pytest.fixture
def open_bytes(tmp_path):
    def open_(data: bytes) -> GGUFFile:
        path = tmp_path / "file.gguf"
        path.write_bytes(data)
        return GGUFFile(path)

    return open_


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """Written by the library: every kind of metadata value and a few tensors."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -2_000_000_000)
    writer.add_uint64("u64", 2**63)
    writer.add_int64("i64", -(2**62))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 1e300)
    writer.add_bool("yes", True)
    writer.add_string("text", "naïve ▁ 🙂")
    writer.add_array("ints", [1, 2, 3])
    writer.add_array("floats", [0.5, -0.25])
    writer.add_array("bools", [True, False])
    writer.add_array("texts", ["a", "", "é"])
    writer.add_array("nested", [[1, 2], [3]])
    generator = numpy.random.default_rng(0)
    writer.add_tensor("matrix", generator.standard_normal((3, 64)).astype(numpy.float32))
    writer.add_tensor("vector", generator.standard_normal(5).astype(numpy.float16))
    quantised = gguf.quants.quantize(
        generator.standard_normal((4, 64)).astype(numpy.float32), gguf.GGMLQuantizationType.Q4_1
    )
    writer.add_tensor("packed", quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_equals_the_librarys(small_file):
    theirs = gguf.GGUFReader(small_file)
    with GGUFFile(small_file) as ours:
        assert ours.metadata["nested"] == [[1, 2], [3]]  # the library flattens it
        for key, value in ours.metadata.items():
            if key != "nested":
                assert value == theirs.get_field(key).contents(), key
        assert set(ours.metadata) == {k for k in theirs.fields if not k.startswith("GGUF.")}


def test_tensors_equal_the_librarys(small_file):
    with GGUFFile(small_file) as ours:
        for theirs in gguf.GGUFReader(small_file).tensors:
            info = ours.tensors[theirs.name]
            assert info.shape == tuple(int(n) for n in reversed(theirs.shape))
            assert (info.offset, info.num_bytes) == (theirs.data_offset, theirs.n_bytes)
            expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
            assert numpy.array_equal(ours.read(theirs.name).numpy(), expected)


def test_read_outlives_the_file(small_file):
    with GGUFFile(small_file) as file:
        values = file.read("matrix")
    assert values.shape == (3, 64)
    assert values.isfinite().all()


def test_type_table_equals_the_librarys():
    theirs = {int(k): (k.name, *v) for k, v in gguf.GGML_QUANT_SIZES.items()}
    assert {k: (t.name, t.block_size, t.block_bytes) for k, t in TYPES.items()} == theirs


@pytest.fixture(params=["kernels", "numpy"])
def decoder(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(native, "level", lambda: 0)


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_type_decodes_like_the_library(name, dtype, decoder, open_bytes):
    """Random bytes: every bit pattern of scales included, so NaN compares equal to NaN."""
    storage = next(t for t in TYPES.values() if t.name == name)
    kind = next(k for k, t in TYPES.items() if t.name == name)
    width = 2 * storage.block_size
    data = numpy.random.default_rng(kind).integers(0, 256, (3, 2 * storage.block_bytes))
    raw = data.astype(numpy.uint8)
    file = open_bytes(pad(header(1, 0) + tensor("t", (width, 3), kind)) + raw.tobytes())
    plain = {"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F64": "<f8"}
    with numpy.errstate(all="ignore"):
        if name in plain:
            expected = raw.view(plain[name]).astype(numpy.float32)
        else:
            expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    wanted = torch.from_numpy(expected.copy()).to(dtype)
    assert torch.equal(file.read("t", dtype).nan_to_num(7.0), wanted.nan_to_num(7.0))
    assert file.read("t", dtype).dtype == dtype


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0"])
def test_fast_decoders_over_several_pieces(name, decoder, open_bytes):
    kind, storage = next((k, t) for k, t in TYPES.items() if t.name == name)
    rows = 3 * 8192 // 4 + 5
    raw = numpy.random.default_rng(1).integers(0, 256, (rows, 4 * storage.block_bytes))
    raw = raw.astype(numpy.uint8)
    file = open_bytes(pad(header(1, 0) + tensor("t", (128, rows), kind)) + raw.tobytes())
    with numpy.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    assert numpy.array_equal(file.read("t").numpy(), expected, equal_nan=True)


def test_a_type_without_decoder_is_refused_when_read(open_bytes):
    kind = next(k for k, t in TYPES.items() if t.name == "Q8_K")
    file = open_bytes(pad(header(1, 0) + tensor("t", (256, 1), kind)) + bytes(292))
    with pytest.raises(
        CheckpointError, match="stored as Q8_K, which cannot be read; readable: F32"
    ):
        file.read("t")
    with pytest.raises(CheckpointError, match="has no tensor 'u'"):
        file.read("u")


def test_version_2_and_empty_header(open_bytes):
    assert open_bytes(header(0, 0, version=2)).metadata == {}


U32, STRING, ARRAY = 4, 8, 9
HUGE = 2**63
HOSTILE = {
    "empty file": (b"", "the file is empty"),
    "wrong magic": (header(0, 0, magic=b"PK\x03\x04"), "starts with"),
    "only magic": (b"GGUF", "truncated"),
    "version 1": (header(0, 0, version=1), "version is 1"),
    "version 0": (header(0, 0, version=0), "version is 0"),
    "version 99": (header(0, 0, version=99), "version is 99"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensor count": (header(HUGE, 0), "claims .* tensors"),
    "tensor count, modest": (header(3, 0), "truncated"),
    "pair count": (header(0, HUGE), "truncated, or claims"),
    "key length": (header(0, 1) + struct.pack("<Q", HUGE) + bytes(9), "text of .* bytes"),
    "key not UTF-8": (header(0, 1) + text(b"\xff") + bytes(8), "not UTF-8"),
    "value type": (header(0, 1) + text("a") + struct.pack("<II", 13, 0), "type 13 is unknown"),
    "no value": (header(0, 1) + text("keykey") + struct.pack("<I", 12), "truncated"),
    "string length": (header(0, 1) + text("a") + struct.pack("<IQ", STRING, HUGE), "text of"),
    "array count": (
        header(0, 1) + text("a") + struct.pack("<IIQ", ARRAY, U32, HUGE),
        "truncated, or claims",
    ),
    "array of texts": (
        header(0, 1) + text("a") + struct.pack("<IIQQ", ARRAY, STRING, 1, HUGE),
        "longer than the file",
    ),
    "array of texts, cut": (
        header(0, 1) + text("a") + struct.pack("<IIQ", ARRAY, STRING, 2) + text("x" * 12),
        "inside an array",
    ),
    "array of bad texts": (
        header(0, 1) + text("a") + struct.pack("<IIQ", ARRAY, STRING, 1) + text(b"\xff"),
        "not UTF-8",
    ),
    "deep nesting": (
        header(0, 1) + text("a") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 99,
        "nested more than 4",
    ),
    "too many values": (
        header(0, 1) + text("a") + struct.pack("<IIQ", ARRAY, 0, 1 << 23) + bytes(1 << 23),
        "more than 4194304 metadata values",
    ),
    "many empty arrays": (
        header(0, 1)
        + text("a")
        + struct.pack("<IIQ", ARRAY, ARRAY, 1 << 23)
        + struct.pack("<IQ", 0, 0) * (1 << 23),
        "more than 4194304 metadata values",
    ),
    "key twice": (
        header(0, 2) + (text("abcdefghij") + struct.pack("<II", U32, 1)) * 2,
        "'abcdefghij' occurs twice",
    ),
    "split file": (
        header(0, 1) + text("split.count") + struct.pack("<II", U32, 2),
        "part of a split file",
    ),
    "alignment 0": (
        header(0, 1) + text("general.alignment") + struct.pack("<II", U32, 0),
        "power of two",
    ),
    "alignment is text": (
        header(0, 1) + text("general.alignment") + struct.pack("<I", STRING) + text("x"),
        "power of two",
    ),
    "no dimensions": (pad(header(1, 0) + tensor("t", ())), "0 dimensions"),
    "five dimensions": (pad(header(1, 0) + tensor("t", (1,) * 5)), "5 dimensions"),
    "empty dimension": (pad(header(1, 0) + tensor("t", (0, 4))), "cannot have shape"),
    "shape overflow": (pad(header(1, 0) + tensor("t", (2**62, 2**62))), "beyond the file's end"),
    "shape overflow to 0": (pad(header(1, 0) + tensor("t", (2**32, 2**32))), "beyond the file"),
    "part of a block": (pad(header(1, 0) + tensor("t", (33, 1), 3)), "cannot have shape"),
    "tensor type": (pad(header(1, 0) + tensor("t", (4,), 4)) + bytes(64), "unknown type 4"),
    "offset": (pad(header(1, 0) + tensor("t", (4,), 0, HUGE)) + bytes(64), "beyond the file"),
    "negative offset": (
        pad(header(1, 0) + tensor("t", (4,), 0, 2**64 - 32)) + bytes(64),
        "beyond the file",
    ),
    "one byte short": (pad(header(1, 0) + tensor("t", (8,))) + bytes(31), "beyond the file"),
    "misaligned": (pad(header(1, 0) + tensor("t", (4,), 0, 8)) + bytes(64), "not aligned"),
    "tensor twice": (pad(header(2, 0) + tensor("t", (4,)) * 2) + bytes(64), "'t' occurs twice"),
    "overlap": (
        pad(header(2, 0) + tensor("t", (16,)) + tensor("u", (4,), 0, 32)) + bytes(96),
        "'t' and 'u' overlap",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line_and_little_memory(case, open_bytes):
    data, message = HOSTILE[case]
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as caught:
            open_bytes(data)
        assert tracemalloc.get_traced_memory()[1] < len(data) + (48 << 20)
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert "file.gguf" in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        GGUFFile(tmp_path / "none.gguf")
    with pytest.raises(CheckpointError, match="directory"):
        GGUFFile(tmp_path)


def load_everything(path) -> None:
    """Loads, or raises CheckpointError; any other exception or warning is a bug."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with GGUFFile(path) as file:
                for name, info in file.tensors.items():
                    assert file.read(name).shape == info.shape
        except CheckpointError as error:
            assert "\n" not in str(error)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 2, 4, 8, 9, 10, 127, 128, 255])),
        max_size=4,
    ),
    keep=st.floats(0, 1),
    truncate=st.booleans(),
)
def test_fuzz_random_damage(small_file, tmp_path, edits, keep, truncate):
    data = bytearray(small_file.read_bytes())
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data[: int(keep * len(data))] if truncate else data)
    load_everything(path)


def test_every_truncation(small_file, tmp_path):
    data = small_file.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            GGUFFile(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_into_given_memory_is_the_same(small_file, dtype) -> None:
    file = GGUFFile(small_file)
    direct = 0
    for name, info in file.tensors.items():
        want = file.read(name, dtype)
        out = torch.full((want.numel(),), -7.0, dtype=dtype)
        got = file.read(name, out=out)
        assert got.dtype == dtype and torch.equal(got, want), info.type
        direct += got.data_ptr() == out.data_ptr()
    assert direct > 0
