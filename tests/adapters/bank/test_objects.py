"""Objects: the same tensors give the same bytes, and no bytes at all get past the checks by accident."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.bank import BankCorrupt, BankTooLarge, ObjectRef
from adapters.bank.files import Disk
from adapters.bank.objects import decode_object, encode_object, read_object, write_object

from .factory import make_bank, make_tensors

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.int64])


@st.composite
def tensor_dicts(draw: st.DrawFn) -> dict[str, Tensor]:
    names = draw(st.lists(st.text("abc.019_", min_size=1, max_size=12), unique=True, min_size=1, max_size=4))
    values = st.lists(st.integers(-1000, 1000), max_size=12)
    return {name: torch.tensor(draw(values)).to(draw(DTYPES)) for name in names}


def ref_of(data: bytes) -> ObjectRef:
    return ObjectRef(hashlib.sha256(data).hexdigest(), len(data))


@settings(deadline=None, max_examples=60)
@given(tensor_dicts())
def test_round_trip(tensors: dict[str, Tensor]) -> None:
    data = encode_object(tensors)
    loaded = decode_object(data, ref_of(data))
    assert loaded.keys() == tensors.keys()
    assert all(
        torch.equal(loaded[name], tensors[name]) and loaded[name].dtype == tensors[name].dtype for name in tensors
    )
    assert encode_object(dict(reversed(loaded.items()))) == data


def test_views_and_strides_do_not_change_the_bytes() -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    views = {"a": whole[1:3], "b": whole[:, ::2], "c": whole.T, "d": whole.requires_grad_()}
    copies = {name: view.detach().clone(memory_format=torch.contiguous_format) for name, view in views.items()}
    assert encode_object(views) == encode_object(copies)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_bytes_are_tensors_or_a_typed_error(data: st.DataObject) -> None:
    """Even when the digest is right: somebody may have written nonsense on purpose."""
    content = bytearray(encode_object(make_tensors()))
    for position in data.draw(st.lists(st.integers(0, 400), max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        decode_object(bytes(content), ref_of(bytes(content)))
    except BankCorrupt:
        return


@settings(deadline=None, max_examples=60)
@given(position=st.integers(0, 695), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(position: int, bit: int) -> None:
    data = bytearray(encode_object(make_tensors()))
    ref = ref_of(bytes(data))
    data[position] ^= 1 << bit
    with pytest.raises(BankCorrupt, match="its bytes were altered"):
        decode_object(bytes(data), ref)


def with_header(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


BAD_HEADERS = {
    "nothing": b"",
    "length past the end": with_header({}, length=1 << 40),
    "not JSON": with_header(b"\xff\xfe"),
    "nested too deep": with_header(b"[" * 100_000),
    "a list": with_header([1]),
    "no tensors": with_header({}),
    "metadata": with_header({"__metadata__": {"a": "b"}}),
    "unknown dtype": with_header({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
    "offsets past the end": with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
    "offsets that disagree": with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"abcd"),
    "shape that overflows": with_header({"a": {"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 0]}}),
    "bytes that no tensor uses": with_header(
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"abcdefgh"
    ),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_header(case: str) -> None:
    data = BAD_HEADERS[case]
    with pytest.raises(BankCorrupt, match="write it again"):
        decode_object(data, ref_of(data))


def test_what_a_bank_does_not_hold() -> None:
    with pytest.raises(ValueError, match="1 to"):
        encode_object({})
    with pytest.raises(ValueError, match="float16"):
        encode_object({"a": torch.zeros(1, dtype=torch.float16)})


def test_an_object_too_large_to_be_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.bank.objects.MAX_OBJECT_BYTES", 100)
    with pytest.raises(BankTooLarge):
        encode_object(make_tensors())


def test_an_object_is_stored_once_and_never_rewritten(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, [])
    data = encode_object(make_tensors())
    ref = write_object(Disk(), bank.root, data)
    [path] = (tmp_path / "objects/sha256").glob(f"{ref.object}*")
    inode = path.stat().st_ino
    assert write_object(Disk(), bank.root, data) == ref
    assert path.stat().st_ino == inode
    assert read_object(bank.root, ref).keys() == make_tensors().keys()
