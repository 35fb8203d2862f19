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
from .experts import ExpertSite, check_base, check_expert, check_finite, expert_sites
from .info import MAX_EXPERTS, TARGETS, BaseModelInfo, ExpertInfo, GateInfo, ObjectRef, ScoresInfo, Target, TaskInfo
from .manifest import Manifest, check_grid
from .store import Bank
from .upkeep import Collected

__all__ = [
    "MAX_EXPERTS",
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
    "ExpertSite",
    "GateInfo",
    "Manifest",
    "ObjectRef",
    "ScoresInfo",
    "Target",
    "TaskInfo",
    "check_base",
    "check_expert",
    "check_finite",
    "check_grid",
    "expert_sites",
]
