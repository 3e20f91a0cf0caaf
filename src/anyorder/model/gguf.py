"""Reader of GGUF files (versions 2 and 3, little-endian): metadata and tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Written for files from strangers:
every count, length, shape and offset is checked against the file before anything is allocated
or touched, and whatever is wrong ends in one `CheckpointError`.

Knows nothing of architectures; does not write. A file that is split over several is refused.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from anyorder.core.errors import CheckpointError
from anyorder.model.gguf_quantization import READABLE, TYPES, decode

if TYPE_CHECKING:
    import torch

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_MAX_VALUES = 1 << 22
"""Metadata values in a file, array items counted one by one: 16 times the largest vocabularies,
and a bound on the memory that a hostile header can claim."""
_MAX_TENSORS = 1 << 16
_MAX_DIMENSIONS = 4
_MAX_NESTING = 4
_MAX_NAME_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Where a tensor lies in the file."""

    name: str
    shape: tuple[int, ...]
    """In torch's order: [out, in] for a matrix (the file has it reversed)."""
    type: str
    """Storage type: "F32", "Q4_1", ..."""
    offset: int
    """From the start of the file, bytes."""
    num_bytes: int


class GGUFFile:
    """An open GGUF file. Raises `CheckpointError` if it is not a sound one.

    Reading is thread-safe. Close it (or use it as a context manager) to release the mapping.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                # A private mapping is writable, as torch asks of a buffer, and never written to.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            reason = getattr(error, "strerror", None) or "the file is empty"
            raise CheckpointError(f"cannot read {self.path}: {reason}.") from None
        try:
            header = _Header(self._map, self.path)
            self.version: int = header.version
            self.metadata: Mapping[str, Any] = header.metadata
            """Values as Python objects: int, float, bool, str, (nested) list."""
            self.tensors: Mapping[str, TensorInfo] = header.tensors
        except CheckpointError:
            self.close()
            raise

    def read(
        self, name: str, dtype: torch.dtype | None = None, *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The tensor `name`, decoded to `dtype` (default float32); a copy that outlives the file.

        Half-width types need half the memory, also while reading: decoding goes piece by piece.
        `out` (contiguous, any shape of as many numbers; its type counts) may be what is returned.
        """
        import torch

        if name not in self.tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r}.")
        info = self.tensors[name]
        if info.type not in READABLE:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is stored as {info.type}, which cannot be read; "
                f"readable: {', '.join(READABLE)}."
            )
        raw = torch.frombuffer(
            self._map, dtype=torch.uint8, offset=info.offset, count=info.num_bytes
        )
        if out is not None:
            dtype = out.dtype
        decoded = decode(raw, info.type, info.shape, dtype or torch.float32, out)
        self.release(name)
        return decoded

    def stored(self, name: str) -> torch.Tensor:
        """The rows of a tensor as they lie in the file, uint8 [rows, bytes]: a view, for as long as
        the file is open. `release` it after use."""
        import torch

        info = self.tensors[name]
        raw = torch.frombuffer(
            self._map, dtype=torch.uint8, offset=info.offset, count=info.num_bytes
        )
        return raw.view(math.prod(info.shape[:-1]), -1)

    def release(self, name: str) -> None:
        """Give back the memory of a tensor that was read, which counts as this process's."""
        if hasattr(mmap, "MADV_DONTNEED"):
            info = self.tensors[name]
            start = info.offset - info.offset % mmap.PAGESIZE
            length = info.offset + info.num_bytes - start
            self._map.madvise(mmap.MADV_DONTNEED, start, length)

    def close(self) -> None:
        """Release the mapping; `metadata` and `tensors` stay usable, `read` does not."""
        self._map.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Header:
    """One pass over everything before the tensor data."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._size = len(data)
        self._at = 0
        self._num_values = 0
        num_tensors, num_pairs = self._read_preamble()
        self.metadata = self._read_metadata(num_pairs)
        self.tensors = self._read_tensors(num_tensors)

    def _fail(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self._path} is not a sound GGUF file: {problem}.")

    def _read_preamble(self) -> tuple[int, int]:
        magic = self._data[:4]
        if magic != b"GGUF":
            self._fail(f"it starts with {magic!r} instead of b'GGUF'")
        self._at = 4
        (version,) = self._unpack("I")
        self.version = int(version)
        if version & 0xFFFF == 0 and version:
            self._fail("it is big-endian; convert it to little-endian")
        if version not in (2, 3):
            self._fail(f"its version is {version}; versions 2 and 3 can be read")
        num_tensors, num_pairs = self._unpack("QQ")
        if num_tensors > _MAX_TENSORS:
            self._fail(f"it claims {num_tensors} tensors; at most {_MAX_TENSORS} are allowed")
        return num_tensors, num_pairs

    # ------------------------------------------------------------------------------- metadata
    def _read_metadata(self, num_pairs: int) -> dict[str, Any]:
        self._count_values(num_pairs, smallest=13)
        metadata: dict[str, Any] = {}
        for _ in range(num_pairs):
            key = self._string(most=_MAX_NAME_BYTES)
            if key in metadata:
                self._fail(f"metadata key {key!r} occurs twice")
            (kind,) = self._unpack("I")
            metadata[key] = self._value(kind, nesting=0)
        if metadata.get("split.count", 0) not in (0, 1):
            self._fail("it is one part of a split file; merge the parts first (gguf-split --merge)")
        return metadata

    def _value(self, kind: int, nesting: int) -> Any:
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._string(most=self._size)
        if kind != _ARRAY:
            self._fail(f"metadata value type {kind} is unknown")
        if nesting == _MAX_NESTING:
            self._fail(f"arrays are nested more than {_MAX_NESTING} deep")
        kind, count = self._unpack("IQ")
        if kind in _SCALARS:
            self._count_values(count, smallest=struct.calcsize("<" + _SCALARS[kind]))
            return list(self._unpack(f"{count}{_SCALARS[kind]}"))
        if kind == _STRING:
            self._count_values(count, smallest=8)
            return self._strings(count)
        self._count_values(count, smallest=12)
        return [self._value(kind, nesting + 1) for _ in range(count)]

    def _count_values(self, count: int, *, smallest: int) -> None:
        """Refuse counts that the rest of the file, or the memory we allow, cannot hold."""
        self._num_values += count
        if count * smallest > self._size - self._at:
            self._fail(f"it is truncated, or claims {count} values that it does not have")
        if self._num_values > _MAX_VALUES:
            self._fail(f"it has more than {_MAX_VALUES} metadata values")

    def _strings(self, count: int) -> list[str]:
        """Many strings in a row: vocabularies and merges, so the loop is kept tight."""
        data, at, size = self._data, self._at, self._size
        length_at = struct.Struct("<Q").unpack_from
        strings = []
        for _ in range(count):
            if at + 8 > size:
                self._fail("it is truncated inside an array of texts")
            start = at + 8
            at = start + length_at(data, at)[0]
            if at > size:
                self._fail("a text is longer than the file")
            strings.append(data[start:at])
        self._at = at
        try:
            return [text.decode() for text in strings]
        except UnicodeDecodeError:
            self._fail("a text in an array is not UTF-8")

    def _string(self, *, most: int) -> str:
        (length,) = self._unpack("Q")
        if length > most or length > self._size - self._at:
            self._fail(f"it is truncated, or claims a text of {length} bytes")
        start = self._at
        self._at += length
        try:
            return self._data[start : self._at].decode()
        except UnicodeDecodeError:
            self._fail("a text is not UTF-8")

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        packed = struct.Struct("<" + layout)
        if self._at + packed.size > self._size:
            self._fail("it is truncated")
        values = packed.unpack_from(self._data, self._at)
        self._at += packed.size
        return values

    # -------------------------------------------------------------------------------- tensors
    def _read_tensors(self, num_tensors: int) -> dict[str, TensorInfo]:
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            self._fail(f"general.alignment is {alignment!r}; it must be a power of two")
        found = [self._tensor_info() for _ in range(num_tensors)]
        data_start = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in found:
            if name in tensors:
                self._fail(f"tensor {name!r} occurs twice")
            storage = TYPES[kind]
            num_bytes = math.prod(shape) // storage.block_size * storage.block_bytes
            if offset % alignment:
                self._fail(f"tensor {name!r} is not aligned to {alignment} bytes")
            if data_start + offset + num_bytes > self._size:
                self._fail(f"tensor {name!r} of shape {list(shape)} reaches beyond the file's end")
            tensors[name] = TensorInfo(
                name=name,
                shape=shape,
                type=storage.name,
                offset=data_start + offset,
                num_bytes=num_bytes,
            )
        self._check_overlap(tensors)
        return tensors

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(most=_MAX_NAME_BYTES)
        (num_dimensions,) = self._unpack("I")
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            self._fail(f"tensor {name!r} has {num_dimensions} dimensions, not 1 to 4")
        shape = self._unpack(f"{num_dimensions}Q")[::-1]
        kind, offset = self._unpack("IQ")
        if kind not in TYPES:
            self._fail(f"tensor {name!r} has the unknown type {kind}")
        if 0 in shape or shape[-1] % TYPES[kind].block_size:
            self._fail(
                f"tensor {name!r} of type {TYPES[kind].name} cannot have shape {list(shape)}"
            )
        return name, shape, kind, offset

    def _check_overlap(self, tensors: dict[str, TensorInfo]) -> None:
        end, before = 0, ""
        for info in sorted(tensors.values(), key=lambda info: info.offset):
            if info.offset < end:
                self._fail(f"tensors {before!r} and {info.name!r} overlap")
            end, before = info.offset + info.num_bytes, info.name
