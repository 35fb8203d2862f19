"""What a task was learned from, as one number: by it an interrupted or repeated call is recognised."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime

from adapters.data import DataError, Example
from adapters.settings import LearnSettings


def recipe_sha256(train: Sequence[Example], settings: LearnSettings) -> str:
    """SHA-256 over the settings and the examples in order: on the same bank and machine they give the same expert."""
    digest = hashlib.sha256(json.dumps(settings.model_dump(mode="json"), sort_keys=True).encode() + b"\n")
    for example in train:
        digest.update(example.model_dump_json(exclude_none=True).encode() + b"\n")
    return digest.hexdigest()


def creation_time() -> datetime:
    """Now, or what SOURCE_DATE_EPOCH says (seconds since 1970), for banks that are the same byte for byte.

    Raises DataError for a SOURCE_DATE_EPOCH that is no time.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        seconds = datetime.now(UTC) if given is None else datetime.fromtimestamp(int(given), UTC)
    except (ValueError, OverflowError, OSError):
        raise DataError(f"SOURCE_DATE_EPOCH is {given!r}, expected seconds since 1970; correct or unset it") from None
    return seconds.replace(microsecond=0)
