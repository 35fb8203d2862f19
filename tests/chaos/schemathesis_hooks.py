"""Loaded by schemathesis: archives, whole and wrong, as bodies of an upload, and a check of our own.

SETA_TEST_ARCHIVE is a whole archive, SETA_TEST_PRIVATE a directory of the server that no answer may name.
"""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st

MEDIA_TYPE = "application/x-tar"
NAMES = ("manifest.json", "objects/sha256/" + "0" * 64 + ".safetensors", "../manifest.json", "/manifest.json")


def archive(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def altered(at: int, value: int) -> bytes:
    """The whole archive with one byte set."""
    at %= len(WHOLE)
    return WHOLE[:at] + bytes([value]) + WHOLE[at + 1 :]


WHOLE = Path(os.environ["SETA_TEST_ARCHIVE"]).read_bytes() if "SETA_TEST_ARCHIVE" in os.environ else b"no archive"
CONTENTS = st.binary(max_size=600) | st.sampled_from([b"{}", b'{"format_version": 1}', b'{"format_version": 99}'])
ARCHIVES = st.lists(st.tuples(st.sampled_from(NAMES), CONTENTS), max_size=3).map(archive)

DAMAGED = st.builds(altered, st.integers(0, 4096) | st.integers(0, len(WHOLE)), st.integers(0, 255))
CUT = st.integers(0, len(WHOLE)).map(lambda size: WHOLE[:size])

schemathesis.openapi.media_type(MEDIA_TYPE, st.binary(max_size=2000) | ARCHIVES | DAMAGED | CUT | st.just(WHOLE))


@schemathesis.serializer(MEDIA_TYPE)  # the other phases make values of any type, which would not be sent as they are
def as_bytes(_: schemathesis.SerializationContext, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@schemathesis.check
def tells_nothing_of_the_server(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    shown = response.text
    for private in (os.environ["SETA_TEST_PRIVATE"], "Traceback (most", "site-packages"):
        assert private not in shown, f"the answer shows {private}"
