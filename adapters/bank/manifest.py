"""The schema of a generation: which tasks it knows, which experts they compose, and where the tensors are.

A manifest is small, immutable and complete: with the objects it names it is all that a server needs. The models here
check everything that can be checked without reading an object; `experts.check_expert` checks the rest.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

import pydantic_core
from pydantic import (
    AwareDatetime,
    Field,
    JsonValue,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from .errors import RESTORE, BankCorrupt, BankFormatTooNew, BankNotFound, BankTooLarge
from .info import (
    MAX_EXPERTS,
    MAX_TASKS,
    TARGETS,
    BaseModelInfo,
    Dimension,
    ExpertInfo,
    Frozen,
    GateInfo,
    Generation,
    ObjectRef,
    ScoresInfo,
    Target,
    TaskInfo,
)

FORMAT_VERSION = 3
"""Version 2 may carry `scores` and `recipe_sha256`; without them it is version 1, which earlier software reads.
Version 3 is for more than MANY_TASKS tasks: it has no `membership`."""
GENERATIONS_DIR = "generations"
MAX_MANIFEST_BYTES = 32 << 20
MAX_MEMBERSHIP_CELLS = 1 << 20
MANY_TASKS = 64
"""With more tasks a manifest leaves out the matrix of tasks and experts, which grows with their product."""
MAX_SETTINGS_BYTES = 256 << 10

Bit = Annotated[int, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


def manifest_path(generation: int) -> str:
    """Relative to the bank."""
    return f"{GENERATIONS_DIR}/{generation:05d}.json"


def check_grid(base: BaseModelInfo, trunk_layers: int, block_size: int, targets: Sequence[Target]) -> None:
    """Whether a bank of this layout can exist for this base model. Raises ValueError."""
    _refuse_duplicates("targets", targets)
    if trunk_layers >= base.num_layers:
        raise ValueError(f"trunk_layers {trunk_layers} leaves no layer of {base.num_layers} for experts")
    for target in targets:
        dims = base.target_dims(target)
        if any(dim % block_size for dim in dims):
            raise ValueError(f"block_size {block_size} does not divide {target}'s dimensions {dims}")


def version_for(num_tasks: int, needs_version_2: bool) -> Literal[1, 2, 3]:
    """The oldest format that holds a generation, so that the oldest software possible can read it."""
    if num_tasks > MANY_TASKS:
        return 3
    return 2 if needs_version_2 else 1


class Manifest(Frozen):
    """One generation of a bank. `created` is kept to the second, in UTC.

    `membership` is empty from format version 3 on: the experts' lists of tasks say the same. Readers of any version use
    `experts_by_task` and `tasks_by_expert`.
    """

    format_version: Literal[1, 2, 3] = 1
    generation: Generation
    parent: Generation | None
    created: AwareDatetime
    base: BaseModelInfo
    trunk_layers: Annotated[int, Field(ge=0, le=4096)]
    block_size: Dimension
    targets: Annotated[tuple[Target, ...], Field(min_length=1, max_length=len(TARGETS))]
    tasks: Annotated[tuple[TaskInfo, ...], Field(max_length=MAX_TASKS)] = ()
    experts: Annotated[tuple[ExpertInfo, ...], Field(max_length=MAX_EXPERTS)] = ()
    membership: Annotated[tuple[tuple[Bit, ...], ...], Field(max_length=MAX_TASKS)] = ()
    gate: GateInfo
    scores: ScoresInfo | None = None
    accuracy_matrix: Annotated[tuple[tuple[Percent, ...], ...], Field(max_length=MAX_TASKS)] = ()
    settings: dict[str, JsonValue] = {}

    @field_validator("created")
    @classmethod
    def _whole_utc_seconds(cls, created: datetime) -> datetime:
        return created.astimezone(UTC).replace(microsecond=0)

    @field_serializer("created")
    def _iso_8601(self, created: datetime) -> str:
        return created.strftime("%Y-%m-%dT%H:%M:%SZ")

    @field_validator("settings")
    @classmethod
    def _settings_are_plain_json(cls, settings: dict[str, JsonValue]) -> dict[str, JsonValue]:
        size = len(json.dumps(settings, allow_nan=False, ensure_ascii=False).encode())
        if size > MAX_SETTINGS_BYTES:
            raise ValueError(f"{size} bytes as JSON, at most {MAX_SETTINGS_BYTES} are kept")
        return settings

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        self._check_lineage()
        self._check_grid()
        self._check_membership()
        self._check_accuracy()
        return self

    def _check_lineage(self) -> None:
        if self.scores is not None and self.format_version < 2:
            raise ValueError(f"scores need format_version 2, found {self.format_version}")
        if any(task.recipe_sha256 for task in self.tasks) and self.format_version < 2:
            raise ValueError(f"recipe_sha256 needs format_version 2, found {self.format_version}")
        if self.generation == 0:
            if self.parent is not None or self.tasks or self.experts:
                raise ValueError("generation 0 has no parent, no tasks and no experts")
        elif self.parent is None or self.parent >= self.generation:
            raise ValueError(f"parent {self.parent} of generation {self.generation} is not an earlier generation")
        for task in self.tasks:
            if task.generation > self.generation:
                raise ValueError(f"task {task.name} was learned in generation {task.generation}, after this one")

    def _check_grid(self) -> None:
        check_grid(self.base, self.trunk_layers, self.block_size, self.targets)

    def _check_membership(self) -> None:
        names = [task.name for task in self.tasks]
        _refuse_duplicates("task names", names)
        _refuse_duplicates("expert ids", [expert.id for expert in self.experts])
        _refuse_duplicates("objects have two sizes, they", [ref.object for ref in self.refs])
        if self.format_version >= 3:
            object.__setattr__(self, "membership", ())
            self._check_task_lists(names)
            return
        rows, columns = len(names), len(self.experts)
        if rows * columns > MAX_MEMBERSHIP_CELLS:
            raise ValueError(f"membership of {rows} x {columns} has more than {MAX_MEMBERSHIP_CELLS} cells")
        if len(self.membership) != rows or any(len(row) != columns for row in self.membership):
            raise ValueError(f"membership is not {rows} tasks x {columns} experts")
        for column, expert in enumerate(self.experts):
            members = tuple(name for name, row in zip(names, self.membership, strict=True) if row[column])
            if expert.tasks != members:
                raise ValueError(f"expert {expert.id} lists tasks {expert.tasks}, its membership column says {members}")
            _check_kind(expert)

    def _check_task_lists(self, names: Sequence[str]) -> None:
        row_of = {name: row for row, name in enumerate(names)}
        for expert in self.experts:
            rows = [row_of.get(name, -1) for name in expert.tasks]
            if -1 in rows or rows != sorted(set(rows)):
                raise ValueError(f"expert {expert.id} lists tasks {expert.tasks}, not tasks of this manifest in order")
            _check_kind(expert)

    def _check_accuracy(self) -> None:
        lengths = [len(row) for row in self.accuracy_matrix]
        if lengths and lengths != list(range(1, len(self.tasks) + 1)):
            raise ValueError(f"accuracy_matrix has rows of {lengths}, expected 1 to {len(self.tasks)}, or no rows")

    @property
    def layout(self) -> tuple[BaseModelInfo, int, int, tuple[Target, ...]]:
        """All that decides whether an expert's tensors fit: base, trunk, block size, targets."""
        return self.base, self.trunk_layers, self.block_size, self.targets

    @property
    def refs(self) -> tuple[ObjectRef, ...]:
        """Every object this generation needs, each once: the gate, the experts in order, the scores."""
        scores = [] if self.scores is None else [self.scores.ref]
        return tuple(dict.fromkeys([self.gate.ref, *(expert.ref for expert in self.experts), *scores]))

    @property
    def digest(self) -> str:
        """SHA-256 of `to_bytes()`. A manifest names its objects by digest, so this stands for the whole generation."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def tasks_by_expert(self) -> list[list[int]]:
        """For each expert the indices of the tasks that it answers, ascending."""
        row_of = {task.name: row for row, task in enumerate(self.tasks)}
        return [[row_of[name] for name in expert.tasks] for expert in self.experts]

    @property
    def experts_by_task(self) -> list[list[int]]:
        """For each task the indices of the experts that it composes, ascending."""
        found: list[list[int]] = [[] for _ in self.tasks]
        for column, rows in enumerate(self.tasks_by_expert):
            for row in rows:
                found[row].append(column)
        return found

    @property
    def experts_by_object(self) -> dict[ObjectRef, list[ExpertInfo]]:
        """Which experts an object holds: equal tensors are one object."""
        found: dict[ObjectRef, list[ExpertInfo]] = {}
        for expert in self.experts:
            found.setdefault(expert.ref, []).append(expert)
        return found

    def expert(self, expert_id: str) -> ExpertInfo:
        for expert in self.experts:
            if expert.id == expert_id:
                return expert
        known = ", ".join(expert.id for expert in self.experts[:20]) or "none"
        raise BankNotFound(f"generation {self.generation} has no expert {expert_id!r}; it has: {known}")

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, indent 1, a final newline. Equal manifests have equal bytes."""
        is_absent = {"scores": self.scores is None, "membership": self.format_version >= 3}
        fields = self.model_dump(mode="json", exclude={name for name, is_so in is_absent.items() if is_so})
        text = json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        data = (text + "\n").encode()
        if len(data) > MAX_MANIFEST_BYTES:
            raise BankTooLarge(f"the manifest has {len(data)} bytes, at most {MAX_MANIFEST_BYTES}; shrink its settings")
        return data

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "manifest") -> Self:
        """Raises BankFormatTooNew before anything else is looked at, else BankCorrupt naming the fields at fault."""
        _check_version(data, where)
        try:
            return cls.model_validate_json(data, strict=True)
        except ValidationError as error:
            raise BankCorrupt(f"{where}: {_first_errors(error)}; {RESTORE}") from None


def _check_version(data: bytes, where: str) -> None:
    try:
        parsed: Any = pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise BankCorrupt(f"{where} is not JSON ({error}); {RESTORE}") from None
    version = parsed.get("format_version") if isinstance(parsed, dict) else None
    if type(version) is not int or version < 1:
        raise BankCorrupt(
            f"{where}: format_version is {version!r}, expected 1 to {FORMAT_VERSION}; this is no manifest"
        )
    if version > FORMAT_VERSION:
        raise BankFormatTooNew(
            f"{where} has format_version {version}, this software reads up to {FORMAT_VERSION}; upgrade it"
        )


def _first_errors(error: ValidationError, count: int = 3) -> str:
    errors = error.errors(include_input=False, include_url=False)
    shown = [f"{'.'.join(str(part) for part in one['loc']) or 'manifest'}: {one['msg']}" for one in errors[:count]]
    more = [f"and {len(errors) - count} more"] if len(errors) > count else []
    return "; ".join(shown + more)


def _check_kind(expert: ExpertInfo) -> None:
    if (expert.kind == "unique") != (len(expert.tasks) == 1):
        raise ValueError(f"expert {expert.id} is {expert.kind} but has {len(expert.tasks)} task(s)")


def _refuse_duplicates(what: str, values: Sequence[str]) -> None:
    repeated = sorted(value for value, count in Counter(values).items() if count > 1)
    if repeated:
        raise ValueError(f"{what} must be unique, repeated: {', '.join(repeated)}")
