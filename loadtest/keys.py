"""API keys: from a file or the environment, never from the command line, where every user of the machine sees them."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import LoadTestError

CLIENT_VARIABLES = ("SETA_API_KEY", "OPENAI_API_KEY")
ADMIN_VARIABLES = ("SETA_ADMIN_KEY",)
MAX_KEY_CHARS = 4096


def read_key(file: Path | None, variables: tuple[str, ...]) -> str | None:
    """The file's first line, else the first of the variables that is set, else None. Raises LoadTestError."""
    if file is None:
        return next((value.strip() for name in variables if (value := os.environ.get(name, "").strip())), None)
    try:
        with file.open(encoding="utf-8") as opened:
            key = opened.readline(MAX_KEY_CHARS + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadTestError(f"{file}: the key cannot be read ({error})") from error
    if not key or len(key) > MAX_KEY_CHARS or not key.isprintable():
        raise LoadTestError(f"{file}: expected the key on the first line and found none")
    return key
