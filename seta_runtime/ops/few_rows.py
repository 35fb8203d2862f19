"""A few rows' product in C: compiled once on this machine where it can be, else torch does it.

The library is kept in the user's cache, `$XDG_CACHE_HOME/seta` or `~/.cache/seta`, under a hash of its source and of
the compiler. A directory that others could write to is not trusted: then it is compiled anew for this process.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger("seta.runtime")

MAX_ROWS = 32
"""From more rows on torch's own product is the faster one (`docs/performance.md`)."""
FLAGS = ("-O3", "-std=gnu11", "-mavx512f", "-mavx512bf16", "-shared", "-fPIC")
COMPILE_SECONDS = 60
_SOURCE = "few_rows.c"

AddFewRows = Callable[[Tensor, Tensor, Tensor, Tensor | None], None]
"""`y[rows] += x[rows] deltaᵀ`; rows None for all."""


@functools.cache
def add_few_rows() -> AddFewRows | None:
    """The compiled product, or None where the processor or the machine cannot have it. Compiles at the first call."""
    if not _has_bfloat16_dots():
        return None
    try:
        product = _product(_library())
        _check(product)
    except (OSError, subprocess.SubprocessError, AttributeError, ArithmeticError) as error:
        logger.info("small batches use torch's products, the compiled one is not there: %s", error)
        return None
    return product


def fits(y: Tensor, x: Tensor, delta: Tensor, num_rows: int) -> bool:
    """Whether the compiled product can take these: few rows of bfloat16 whose values lie side by side."""
    return (
        num_rows <= MAX_ROWS
        and y.dtype == x.dtype == delta.dtype == torch.bfloat16
        and y.stride(1) == x.stride(1) == 1
        and delta.is_contiguous()
    )


def _product(library: ctypes.PyDLL) -> AddFewRows:
    """`PyDLL` keeps Python's lock: giving it up for microseconds may cost milliseconds to get it back."""
    function = library.seta_add_few_rows
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = (pointer, number, pointer, number, pointer, pointer, number, number, number)
    function.restype = None

    def add(y: Tensor, x: Tensor, delta: Tensor, rows: Tensor | None) -> None:
        where, num_rows = (None, len(x)) if rows is None else (rows.data_ptr(), len(rows))
        function(y.data_ptr(), y.stride(0), x.data_ptr(), x.stride(0), delta.data_ptr(), where, num_rows, *delta.shape)

    return add


def _check(product: AddFewRows) -> None:
    """One product against torch's. Raises: ArithmeticError; what a compiler got wrong must not answer anybody."""
    generator = torch.Generator().manual_seed(0)
    x, delta = (torch.randn(n, 72, generator=generator).bfloat16() for n in (5, 8))
    y = torch.zeros(5, 8, dtype=torch.bfloat16)
    product(y, x, delta, None)
    if not torch.allclose(y.float(), x.float() @ delta.float().T, rtol=0.01, atol=0.05):
        raise ArithmeticError("its results differ from torch's")


def _library() -> ctypes.PyDLL:
    """Raises: OSError, SubprocessError."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise OSError("there is no C compiler")
    source = files("seta_runtime.ops").joinpath(_SOURCE).read_bytes()
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS, check=True).stdout
    name = hashlib.sha256(b"\0".join([source, version, *(flag.encode() for flag in FLAGS)])).hexdigest()[:32] + ".so"
    cache = _cache()
    if cache is not None:
        if not (cache / name).exists():
            _compile(compiler, source, cache / name)
        return ctypes.PyDLL(str(cache / name))
    with tempfile.TemporaryDirectory(prefix="seta-") as folder:
        _compile(compiler, source, Path(folder) / name)
        return ctypes.PyDLL(str(Path(folder) / name))  # once loaded, the file is not needed


def _compile(compiler: str, source: bytes, target: Path) -> None:
    """Whole or not at all, also when several processes do it at once."""
    handle, unfinished = tempfile.mkstemp(dir=target.parent, suffix=".so")
    os.close(handle)
    try:
        command = [compiler, *FLAGS, "-x", "c", "-", "-o", unfinished]
        subprocess.run(command, input=source, capture_output=True, timeout=COMPILE_SECONDS, check=True)
        os.replace(unfinished, target)
    except BaseException:
        os.unlink(unfinished)
        raise


def _cache() -> Path | None:
    """Our directory in the user's cache; None if it cannot be made, or others may write to it."""
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seta"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except (OSError, RuntimeError):  # no home, or not ours to write to
        return None
    is_ours = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return path if is_ours and os.access(path, os.W_OK) else None


def _has_bfloat16_dots() -> bool:
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
