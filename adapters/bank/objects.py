"""Content-addressed safetensors files: `objects/sha256/<digest>.safetensors`, never rewritten, never pickle.

Equal tensors give equal bytes, so writing the same expert twice stores it once, and a generation that leaves an expert
alone refers to the object it already has.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .errors import RESTORE, BankCorrupt, BankNotFound, BankPathEscape, BankTooLarge, shorten
from .files import Disk, atomic_write, read_file, safe_path, write_error
from .info import MAX_OBJECT_BYTES, ObjectRef

OBJECTS_DIR = "objects/sha256"
SUFFIX = ".safetensors"
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 1 << 16
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F64": torch.float64, "I32": torch.int32, "I64": torch.int64}

_DIGEST = re.compile(r"[0-9a-f]{64}")


def object_path(digest: str) -> str:
    """The object's path relative to the bank; BankPathEscape for anything but 64 lower-case hex digits."""
    if not _DIGEST.fullmatch(digest):
        raise BankPathEscape(f"{digest[:80]!r} is not a sha256 digest; expected 64 lower-case hex digits")
    return f"{OBJECTS_DIR}/{digest}{SUFFIX}"


def object_digest(file_name: str) -> str | None:
    """The digest that an object's file is named after, None for a file that is no object."""
    digest = file_name.removesuffix(SUFFIX)
    return digest if digest + SUFFIX == file_name and _DIGEST.fullmatch(digest) else None


def encode_object(tensors: Mapping[str, Tensor]) -> bytes:
    """Safetensors bytes without metadata; the same for the same names, dtypes, shapes and values.

    Raises: ValueError for no tensors or a dtype that no bank holds.
    """
    if not 0 < len(tensors) <= MAX_TENSORS:
        raise ValueError(f"an object holds 1 to {MAX_TENSORS} tensors, got {len(tensors)}")
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            raise ValueError(f"tensor {name} is {tensor.dtype}; a bank holds {', '.join(DTYPES)}")
    own = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in sorted(tensors.items())}
    data: bytes = save(own)
    if len(data) > MAX_OBJECT_BYTES:
        raise BankTooLarge(f"the object has {len(data)} bytes, at most {MAX_OBJECT_BYTES} are read; use fewer blocks")
    return data


def verify_bytes(data: bytes, ref: ObjectRef) -> None:
    """BankCorrupt unless `data` has the size and the digest of `ref`."""
    where = f"object {shorten(ref.object)}"
    if len(data) != ref.object_bytes:
        raise BankCorrupt(f"{where} has {len(data)} bytes, expected {ref.object_bytes}; {RESTORE}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != ref.object:
        raise BankCorrupt(f"{where} has digest {shorten(digest)}, its bytes were altered; {RESTORE}")


def decode_object(data: bytes, ref: ObjectRef) -> dict[str, Tensor]:
    """The tensors of `data`, once its size, digest and header are what `ref` and the format say."""
    verify_bytes(data, ref)
    where = f"object {shorten(ref.object)}"
    _check_header(data, where)
    try:
        return load(data)
    except SafetensorError as error:
        raise BankCorrupt(f"{where} is not a valid safetensors file ({error}); write it again") from None


def write_object(disk: Disk, root: Path, data: bytes) -> ObjectRef:
    """Store encoded bytes under their digest. The caller holds the writer lock.

    An object that is there already is only freshened (`gc` spares young objects), unless its bytes are bad: then it is
    replaced. Its directory is fsynced either way: an earlier writer may have died between its rename and its fsync.
    """
    ref = ObjectRef(hashlib.sha256(data).hexdigest(), len(data))
    path = object_path(ref.object)
    try:
        is_stored = read_file(root, path, MAX_OBJECT_BYTES, len(data)) == data
    except (BankNotFound, BankCorrupt):
        is_stored = False
    if not is_stored:
        atomic_write(disk, root, path, [data])
        return ref
    try:
        disk.touch(safe_path(root, path))
        disk.fsync_dir(root / OBJECTS_DIR)
    except OSError as error:
        raise write_error(path, error) from error
    return ref


def is_stored(root: Path, ref: ObjectRef) -> bool:
    """Whether a file of this name and size is there; whether its bytes are right is known once it is read."""
    try:
        return safe_path(root, object_path(ref.object)).lstat().st_size == ref.object_bytes
    except OSError:
        return False


def read_object_bytes(root: Path, ref: ObjectRef) -> bytes:
    return read_file(root, object_path(ref.object), MAX_OBJECT_BYTES, ref.object_bytes)


def read_object(root: Path, ref: ObjectRef) -> dict[str, Tensor]:
    """The verified tensors. Raises: BankNotFound, BankCorrupt, BankPathEscape, BankTooLarge, BankIOError."""
    return decode_object(read_object_bytes(root, ref), ref)


def _check_header(data: bytes, where: str) -> None:
    """Bound what the safetensors parser will be asked to do; it then checks offsets and sizes itself."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise BankCorrupt(f"{where} has a header of {length} bytes in a file of {len(data)}; write it again")
    try:
        header: Any = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        raise BankCorrupt(f"{where} has a header that is not JSON; write it again") from None
    if not isinstance(header, dict) or not 0 < len(header) <= MAX_TENSORS:
        raise BankCorrupt(f"{where} has a header without 1 to {MAX_TENSORS} tensors; write it again")
    for name, entry in header.items():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if dtype not in DTYPES:
            raise BankCorrupt(
                f"{where}: {name[:80]!r} has dtype {dtype!r}, expected {', '.join(DTYPES)}; write it again"
            )
