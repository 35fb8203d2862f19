"""The expert bank: the one owner of its format on disk (see docs/design.md)."""

from .errors import (
    BankConflict,
    BankCorrupt,
    BankError,
    BankFormatTooNew,
    BankIOError,
    BankMismatch,
    BankNotFound,
    BankPathEscape,
    BankTooLarge,
)
from .experts import check_base, check_expert, check_finite
from .info import TARGETS, BaseModelInfo, ExpertInfo, GateInfo, ObjectRef, Target, TaskInfo
from .manifest import Manifest
from .store import Bank
from .upkeep import Collected

__all__ = [
    "TARGETS",
    "Bank",
    "BankConflict",
    "BankCorrupt",
    "BankError",
    "BankFormatTooNew",
    "BankIOError",
    "BankMismatch",
    "BankNotFound",
    "BankPathEscape",
    "BankTooLarge",
    "BaseModelInfo",
    "Collected",
    "ExpertInfo",
    "GateInfo",
    "Manifest",
    "ObjectRef",
    "Target",
    "TaskInfo",
    "check_base",
    "check_expert",
    "check_finite",
]
