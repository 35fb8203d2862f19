"""What an object's tensors must be before anything computes with them.

An expert holds, per decoder layer `i` and target `t` that has blocks, three tensors `layers.<i>.<t>.<part>`:

    blocks  [n, 2] int32                (row, column) in the l x l grid of W0 [d_out, d_in]; sorted, no duplicates
    A       [n, r, l] bf16 or float32   B  [n, l, r] the same dtype

    ΔW[row·l:(row+1)·l, column·l:(column+1)·l] += B_b A_b
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import BankCorrupt, BankMismatch, shorten
from .info import BaseModelInfo, ExpertInfo, ObjectRef, Target
from .manifest import Manifest

PARTS = ("blocks", "A", "B")

_AGAIN = "write the expert again"

_NAME = re.compile(r"layers\.(0|[1-9][0-9]{0,3})\.([a-z_]{1,16})\.(blocks|A|B)")


class ExpertSite(NamedTuple):
    """An expert's part in one projection: `blocks [n, 2]`, `a [n, r, l]`, `b [n, l, r]`."""

    layer: int
    target: Target
    blocks: Tensor
    a: Tensor
    b: Tensor


def expert_sites(tensors: Mapping[str, Tensor]) -> Iterator[ExpertSite]:
    """The projections of an expert whose tensors are verified (`Bank.load_expert`), in order of layer and target."""
    places = sorted({(int(match[1]), match[2]) for name in tensors if (match := _NAME.fullmatch(name))})
    for layer, target in places:
        blocks, a, b = (tensors[f"layers.{layer}.{target}.{part}"] for part in PARTS)
        yield ExpertSite(layer, target, blocks, a, b)  # type: ignore[arg-type]


def check_base(manifest: Manifest, found: BaseModelInfo) -> None:
    """BankMismatch unless `found`, the model about to be used, is the one the generation was trained on."""
    base = manifest.base
    if base == found:
        return
    if base.weights_sha256 != found.weights_sha256:
        ours, theirs = shorten(base.weights_sha256), shorten(found.weights_sha256)
    else:
        fields = [name for name in BaseModelInfo.model_fields if getattr(base, name) != getattr(found, name)]
        ours, theirs = (", ".join(f"{name} {getattr(info, name)}" for name in fields) for info in (base, found))
    raise BankMismatch(
        f"generation {manifest.generation} was trained on base {base.architecture} {ours}, "
        f"the engine serves {found.architecture} {theirs}; retrain, or start with the model the bank was trained on"
    )


def check_finite(tensors: Mapping[str, Tensor], owner: str) -> None:
    """BankCorrupt if any floating-point tensor holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _is_finite(tensor.detach().cpu()):
            raise BankCorrupt(f"{owner}: {name} holds NaN or infinity; train it again")


def check_object(
    tensors: Mapping[str, Tensor], ref: ObjectRef, manifest: Manifest, experts: Sequence[ExpertInfo]
) -> None:
    """Check one object in every role in which the manifest uses it; `experts`: those that it is."""
    if ref == manifest.gate.ref:
        check_finite(tensors, f"gate of generation {manifest.generation}")
    if manifest.scores is not None and ref == manifest.scores.ref:
        check_finite(tensors, f"scores of generation {manifest.generation}")
    for expert in experts:
        check_expert(tensors, expert, manifest)


def check_expert(tensors: Mapping[str, Tensor], expert: ExpertInfo, manifest: Manifest) -> None:
    """BankCorrupt unless the tensors are exactly the expert that the manifest describes: none missing, none unused."""
    owner = f"expert {expert.id}"
    groups: dict[tuple[int, str], dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        layer, target, part = _parse_name(name, owner, manifest)
        groups[layer, target][part] = tensor
    total = 0
    for (layer, target), group in sorted(groups.items()):
        where = f"{owner}: layers.{layer}.{target}"
        missing = [part for part in PARTS if part not in group]
        if missing:
            raise BankCorrupt(f"{where} lacks {', '.join(missing)}; expected {', '.join(PARTS)}; {_AGAIN}")
        dims = next(manifest.base.target_dims(known) for known in manifest.targets if known == target)
        _check_blocks(group["blocks"], dims, manifest.block_size, where)
        _check_ranks(group["A"], group["B"], len(group["blocks"]), expert.rank, manifest.block_size, where)
        total += len(group["blocks"])
    if total != expert.num_blocks:
        raise BankCorrupt(f"{owner} holds {total} blocks, the manifest says {expert.num_blocks}; {_AGAIN}")
    check_finite(tensors, owner)


def _is_finite(tensor: Tensor) -> bool:
    """In numpy, on one thread: torch's thread pool was 20 times slower on cores that an engine keeps busy."""
    if tensor.dtype == torch.bfloat16:  # unknown to numpy: not finite is an exponent of ones only
        exponents = tensor.view(torch.int16).numpy() & 0x7F80
        return not bool((exponents == 0x7F80).any())
    return bool(np.isfinite(tensor.numpy()).all())


def _parse_name(name: str, owner: str, manifest: Manifest) -> tuple[int, str, str]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise BankCorrupt(f"{owner} has an unexpected tensor {name[:80]!r}; expected layers.<i>.<target>.<blocks|A|B>")
    layer, target, part = int(match[1]), match[2], match[3]
    if not manifest.trunk_layers <= layer < manifest.base.num_layers:
        raise BankCorrupt(
            f"{owner}: {name} is outside layers {manifest.trunk_layers} to {manifest.base.num_layers - 1}; {_AGAIN}"
        )
    if target not in manifest.targets:
        raise BankCorrupt(f"{owner}: {name} is for {target}, not one of {', '.join(manifest.targets)}; {_AGAIN}")
    return layer, target, part


def _check_blocks(blocks: Tensor, dims: tuple[int, int], block_size: int, where: str) -> None:
    if blocks.dtype != torch.int32 or blocks.ndim != 2 or blocks.shape[1] != 2 or not len(blocks):
        raise BankCorrupt(f"{where}.blocks is {_describe(blocks)}, expected int32 [n, 2] with n > 0; {_AGAIN}")
    rows, columns = dims[0] // block_size, dims[1] // block_size
    row, column = blocks.long().unbind(1)
    if bool(((row < 0) | (row >= rows) | (column < 0) | (column >= columns)).any()):
        raise BankCorrupt(f"{where}.blocks leaves the {rows} x {columns} grid of W0 {list(dims)}; {_AGAIN}")
    order = row * columns + column
    if not bool((order[1:] > order[:-1]).all()):
        raise BankCorrupt(f"{where}.blocks is not sorted by (row, column) without duplicates; {_AGAIN}")


def _check_ranks(a: Tensor, b: Tensor, num_blocks: int, rank: int, block_size: int, where: str) -> None:
    if a.dtype not in (torch.bfloat16, torch.float32):
        raise BankCorrupt(f"{where}.A is {a.dtype}, expected bfloat16 or float32; {_AGAIN}")
    for part, tensor, shape in (("A", a, (num_blocks, rank, block_size)), ("B", b, (num_blocks, block_size, rank))):
        if tuple(tensor.shape) != shape or tensor.dtype != a.dtype:
            raise BankCorrupt(f"{where}.{part} is {_describe(tensor)}, expected {a.dtype} {list(shape)}; {_AGAIN}")


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
