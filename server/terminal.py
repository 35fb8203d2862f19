"""What the person at the terminal sees, and what happens to everything else that is printed.

vLLM, torch and the processes they start write hundreds of lines to the two standard streams. While the engine loads, a
`Terminal` puts a pipe in their place (file descriptors 1 and 2, which child processes inherit): our own lines go to the
terminal, theirs are held back. If loading fails, `cause()` finds the exception that started it, so the message can be
one sentence; once the server is ready their lines (warnings and errors) go to stderr as they come.
"""

import logging
import os
import re
import sys
import threading
from collections import deque
from typing import TextIO

# The last line of a traceback: a built-in `SomeError: text`, or `package.module.Anything: text`.
_EXCEPTION = re.compile(r"(?:^|[\]\s])(?:(?:[a-z_]\w*\.)+([A-Z]\w*)|([A-Z]\w*(?:Error|Exception))): (.+)$")
_SECONDARY = re.compile(r"root cause|stack trace|initialization failed|EngineCore encountered", re.IGNORECASE)
_KEPT_LINES = 2000


# vLLM logs a traceback for every error of a client, and one needless warning for the first request with an adapter.
_CHATTY = ("vllm.entrypoints", "vllm.renderers", "vllm.v1.engine.input_processor")


def hush_vllm() -> None:
    """No log lines about single requests. Call once the engine is up: vLLM sets its loggers' levels until then."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Terminal:
    """Prints our lines; with `is_quiet`, captures everybody else's until `release`."""

    def __init__(self, is_quiet: bool) -> None:
        self.out: TextIO = sys.stdout
        self.err: TextIO = sys.stderr
        self._held: deque[str] = deque(maxlen=_KEPT_LINES)
        self._is_held = True
        self._lock = threading.Lock()
        if is_quiet:
            self._capture()

    def say(self, line: str) -> None:
        print(f"seta: {line}", file=self.out, flush=True)

    def warn(self, line: str) -> None:
        print(f"seta: {line}", file=self.err, flush=True)

    def hold(self) -> None:
        """Hold their lines back again: how the engine's processes end is of no interest to anybody."""
        with self._lock:
            self._is_held = True

    def restore(self) -> None:
        """Give the two streams back; the pipe ends when the last child process does."""
        if self.out is not sys.stdout:
            for fd, stream in ((1, self.out), (2, self.err)):
                os.dup2(stream.fileno(), fd)

    def release(self) -> None:
        """From now on the others' lines are passed on; what was held is dropped."""
        with self._lock:
            self._is_held = False
            self._held.clear()

    def cause(self) -> str | None:
        """The first exception in the held lines that is not a mere consequence, as `Type: message`."""
        with self._lock:
            lines = list(self._held)
        found = (match for line in lines if " WARNING " not in line and (match := _EXCEPTION.search(line)))
        return next((f"{m[1] or m[2]}: {m[3]}" for m in found if not _SECONDARY.search(m[3])), None)

    def _capture(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.out, self.err = (os.fdopen(os.dup(fd), "w", buffering=1, errors="replace") for fd in (1, 2))
        read_end, write_end = os.pipe()
        os.dup2(write_end, 1)
        os.dup2(write_end, 2)
        os.close(write_end)
        threading.Thread(target=self._pump, args=(read_end,), name="terminal", daemon=True).start()

    def _pump(self, read_end: int) -> None:
        with os.fdopen(read_end, "r", errors="replace") as lines:
            for line in lines:
                with self._lock:
                    if self._is_held:
                        self._held.append(line.rstrip("\n"))
                    else:
                        print(line, end="", file=self.err, flush=True)
