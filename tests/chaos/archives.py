"""The archives and generations that nobody should accept, made from a good one."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters.bank import Bank, ExpertInfo, Manifest, ObjectRef
from adapters.bank.objects import encode_object, object_path

Members = list[tuple[tarfile.TarInfo, bytes]]


@dataclass(frozen=True)
class Bad:
    """An archive, and the error its upload must get."""

    make: Callable[[Bank], bytes]
    status: int
    code: str


def archive(members: Members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def next_generation(bank: Bank, **changes: Any) -> Manifest:
    """The bank's newest generation under the next number."""
    newest = bank.manifest(max(bank.generations()))
    numbers = {"generation": newest.generation + 1, "parent": newest.generation}
    return Manifest.model_validate(dict(newest) | numbers | changes)


def good(bank: Bank) -> Members:
    """The next generation with all of its objects."""
    manifest = next_generation(bank)
    objects = ((object_path(ref.object), _bytes(bank, ref)) for ref in manifest.refs)
    return [member("manifest.json", manifest.to_bytes()), *(member(name, data) for name, data in objects)]


def with_expert(bank: Bank, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> bytes:
    """The next generation with one expert changed, digests and all: only its tensors are wrong."""
    old = bank.manifest(max(bank.generations())).experts[-1]
    data = encode_object(change(bank.load_expert(bank.manifest(), old.id)))
    ref = ObjectRef(hashlib.sha256(data).hexdigest(), len(data))
    expert = ExpertInfo(**(old.model_dump() | ref._asdict()))
    manifest = next_generation(bank, experts=(*bank.manifest().experts[:-1], expert))
    return archive([member("manifest.json", manifest.to_bytes()), member(object_path(ref.object), data)])


def not_a_number(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(name for name in tensors if name.endswith(".A"))
    changed = tensors[name].clone()
    changed.view(-1)[7] = float("nan")
    return tensors | {name: changed}


def other_shapes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(name for name in tensors if name.endswith(".B"))
    return tensors | {name: torch.cat([tensors[name], tensors[name]], dim=1)}


def changed(bank: Bank, change: Callable[[Members], Members]) -> bytes:
    return archive(change(good(bank)))


def other_base(bank: Bank) -> bytes:
    base = bank.manifest().base.model_copy(update={"weights_sha256": "ab" * 32})
    return archive([member("manifest.json", next_generation(bank, base=base).to_bytes())])


def flipped(members: Members) -> Members:
    info, data = members[-1]
    return [*members[:-1], (info, data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])]


BAD: dict[str, Bad] = {
    "truncated": Bad(lambda bank: archive(good(bank))[:-50_000], 422, "bank_corrupt"),
    "flipped byte": Bad(lambda bank: changed(bank, flipped), 422, "bank_corrupt"),
    "not a number": Bad(lambda bank: with_expert(bank, not_a_number), 422, "bank_corrupt"),
    "wrong shapes": Bad(lambda bank: with_expert(bank, other_shapes), 422, "bank_corrupt"),
    "another base": Bad(other_base, 422, "bank_mismatch"),
    "newer format": Bad(
        lambda _: archive([member("manifest.json", b'{"format_version": 99}')]), 422, "bank_format_too_new"
    ),
    "over the size limit": Bad(lambda bank: archive(good(bank)) + bytes(64 << 20), 413, "too_large"),
    "name with ..": Bad(lambda bank: changed(bank, lambda ms: [*ms, member("../evil", b"x")]), 422, "bank_path_escape"),
    "absolute name": Bad(lambda bank: changed(bank, lambda ms: [*ms, member("/evil", b"x")]), 422, "bank_path_escape"),
    "symbolic link": Bad(
        lambda bank: changed(
            bank, lambda ms: [*ms[:1], member(ms[1][0].name, type=tarfile.SYMTYPE, linkname="/etc/passwd"), *ms[2:]]
        ),
        422,
        "bank_path_escape",
    ),
    "thousandfold compression": Bad(lambda _: gzip.compress(bytes(32 << 20)), 422, "bank_corrupt"),
    "a hole instead of an object": Bad(
        lambda bank: changed(bank, lambda ms: [*ms[:-1], member(ms[-1][0].name, bytes(ms[-1][0].size))]),
        422,
        "bank_corrupt",
    ),
}


def _bytes(bank: Bank, ref: ObjectRef) -> bytes:
    return (bank.root / object_path(ref.object)).read_bytes()
