"""The base model on disk: where it is, what shape it has, and a fingerprint that binds a bank to its weights.

`weights_sha256` is the SHA-256 over every tensor in name order: a line `name dtype [shape]`, then up to `PAGES` pages
of `PAGE_BYTES`, evenly spaced over the tensor's bytes, first and last page included; a tensor that small is taken
whole. How the tensors are spread over files is not part of it. Only config.json, the safetensors headers and those
pages are read, so a 7B model takes well under a second. It tells models and fine-tunes apart; it is no defence
against somebody who edits bytes between the pages on purpose.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.bank import BaseModelInfo

PAGE_BYTES = 4096
PAGES = 8
MAX_JSON_BYTES = 64 << 20
MAX_HEADER_BYTES = 100 << 20  # the safetensors format's own limit
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
EXPECTED = "expected the directory of a Hugging Face model with config.json and safetensors weights"


class BaseModelError(Exception):
    """A base model cannot be used; the message says what was found and what to do."""


class ModelNotFound(BaseModelError):
    """Neither a local directory nor to be had from the Hugging Face Hub."""


class NotAModel(BaseModelError):
    """The directory's files are not those of a decoder model in safetensors."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a safetensors file: its bytes are `[start, end)` of `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    end: int


def resolve_model_dir(model: str) -> Path:
    """A local directory as it is, else a Hub id: from the Hub's local cache, or downloaded. Raises: ModelNotFound."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelNotFound(f"there is no directory {model!r}; give a model's directory, or a Hub id like 'org/name'")
    return _from_hub(model)


def fingerprint(model_dir: Path) -> BaseModelInfo:
    """The shapes from config.json and the digest of the weights. Raises: NotAModel."""
    config = _read_json(model_dir / "config.json")
    digest = hashlib.sha256()
    for tensor in sorted(tensors(model_dir), key=lambda tensor: tensor.name):
        digest.update(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        for page in _pages(tensor):
            digest.update(page)
    return _info(config, digest.hexdigest())


def tensors(model_dir: Path) -> list[TensorEntry]:
    """Every tensor of every shard, each name once. Raises: NotAModel."""
    found: dict[str, TensorEntry] = {}
    for path in _weight_files(model_dir):
        for tensor in read_header(path):
            if tensor.name in found:
                raise NotAModel(f"{tensor.name} is both in {found[tensor.name].path.name} and in {path.name}")
            found[tensor.name] = tensor
    if not found:
        raise NotAModel(f"the weights in {model_dir} hold no tensor; {EXPECTED}")
    return list(found.values())


def read_header(path: Path) -> Iterator[TensorEntry]:
    """What a safetensors file says it holds, checked against the file's size. Raises: NotAModel."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise NotAModel(f"{path} is not a safetensors file, or was cut short; copy it again")
            header = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise NotAModel(f"{path} cannot be read as safetensors ({error}); copy it again") from error
    if not isinstance(header, dict):
        raise NotAModel(f"{path} has a header that is no JSON object; copy it again")
    for name, entry in header.items():
        if name != "__metadata__":
            yield _entry(path, name, entry, data_start=8 + length, size=size)


def _entry(path: Path, name: str, entry: Any, *, data_start: int, size: int) -> TensorEntry:
    try:
        shape = tuple(int(dim) for dim in entry["shape"])
        start, end = (data_start + int(offset) for offset in entry["data_offsets"])
        dtype = str(entry["dtype"])
    except (KeyError, TypeError, ValueError) as error:
        raise NotAModel(f"{path}: the header's entry for {name} is malformed: {error!r}; copy it again") from error
    if not data_start <= start <= end <= size or (math.prod(shape) == 0) != (start == end):
        raise NotAModel(f"{path}: {name} is said to lie outside the file's {size} bytes; copy the file again")
    return TensorEntry(name, dtype, shape, path, start, end)


def _pages(tensor: TensorEntry) -> Iterator[bytes]:
    count = -(-(tensor.end - tensor.start) // PAGE_BYTES)
    chosen = range(count) if count <= PAGES else [i * (count - 1) // (PAGES - 1) for i in range(PAGES)]
    with tensor.path.open("rb", buffering=0) as file:
        for page in chosen:
            offset = tensor.start + page * PAGE_BYTES
            yield os.pread(file.fileno(), min(PAGE_BYTES, tensor.end - offset), offset)


def _weight_files(model_dir: Path) -> list[Path]:
    """model.safetensors, else the shards its index names, as transformers chooses."""
    if (model_dir / WEIGHTS).is_file():
        return [model_dir / WEIGHTS]
    if not (model_dir / INDEX).is_file():
        raise NotAModel(f"{model_dir} has neither {WEIGHTS} nor {INDEX}; {EXPECTED}")
    weight_map = _read_json(model_dir / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise NotAModel(f"{model_dir / INDEX} has no weight_map; copy the model again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not (model_dir / name).is_file():
            raise NotAModel(f"{INDEX} names {name!r}, which is no file in {model_dir}; copy the model again")
    return [model_dir / name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise NotAModel(f"{path} has more than {MAX_JSON_BYTES} bytes; {EXPECTED}")
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotAModel(f"{path.parent} has no {path.name}; {EXPECTED}") from None
    except (OSError, ValueError) as error:
        raise NotAModel(f"{path} cannot be read as JSON ({error}); copy the model again") from error
    if not isinstance(content, dict):
        raise NotAModel(f"{path} does not hold a JSON object; {EXPECTED}")
    return content


def _info(config: dict[str, Any], weights_sha256: str) -> BaseModelInfo:
    try:
        heads = int(config["num_attention_heads"])
        return BaseModelInfo(
            architecture=config["architectures"][0],
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_attention_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            vocab_size=config["vocab_size"],
            weights_sha256=weights_sha256,
        )
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error).replace("\n", "; ")
        raise NotAModel(f"config.json does not describe a decoder model: {what}; {EXPECTED}") from error


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=MODEL_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelNotFound(
            f"{model!r} is no local directory and could not be had from the Hugging Face Hub ({reason}); check the "
            "spelling and the network, set HF_TOKEN for a gated model, or give a local directory"
        ) from error
