"""What can go wrong with a bank. Every message says what was found, what was expected and what to do.

Messages name files relative to the bank's root and never carry an absolute path: they may reach an HTTP client.
"""


class BankError(Exception):
    """Base of every error a bank raises on purpose."""


class BankNotFound(BankError):
    """A bank, a generation, an expert or an object that was asked for does not exist."""


class BankCorrupt(BankError):
    """Stored bytes are not what the format, the manifest or their digest says."""


class BankMismatch(BankError):
    """A generation and a base model, or a generation and its bank, do not belong together."""


class BankFormatTooNew(BankError):
    """The manifest was written by a later version of this software."""


class BankPathEscape(BankError):
    """A name or a symbolic link leads out of the bank."""


class BankConflict(BankError):
    """Somebody else wrote first, or is writing now."""


class BankTooLarge(BankError):
    """Something exceeds the limit that is checked before it is read or written."""


class BankIOError(BankError):
    """The operating system refused to read or write."""


RESTORE = "restore it from a copy of the bank"


def shorten(digest: str) -> str:
    """First twelve hex digits, enough to recognise a digest in a message."""
    return digest if len(digest) <= 12 else digest[:12] + "…"
