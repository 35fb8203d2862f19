"""The parts of a manifest: the base model, a task, an expert, the gate. Frozen, bounded, no unknown keys."""

from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
)

MAX_OBJECT_BYTES = 4 << 30
MAX_GENERATION = 999_999_999
MAX_TASKS = 1024
MAX_EXPERTS = 4096

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: tuple[Target, ...] = get_args(Target)
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
TaskName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
ExpertId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,127}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Dimension = Annotated[int, Field(ge=1, le=1 << 24)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Generation = Annotated[int, Field(ge=0, le=MAX_GENERATION)]
ObjectBytes = Annotated[int, Field(ge=1, le=MAX_OBJECT_BYTES)]


class ObjectRef(NamedTuple):
    """Where an object's bytes are; the field names are the manifest's, so `ExpertInfo(..., **ref._asdict())` works."""

    object: str
    object_bytes: int


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stored(Frozen):
    """Something whose tensors are an object of the bank."""

    object: Sha256
    object_bytes: ObjectBytes

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef(self.object, self.object_bytes)


class BaseModelInfo(Frozen):
    """The base model's shapes and fingerprint: what a generation was trained on and may be served with."""

    architecture: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    num_layers: Annotated[int, Field(ge=1, le=4096)]
    hidden_size: Dimension
    intermediate_size: Dimension
    num_attention_heads: Dimension
    num_kv_heads: Dimension
    head_size: Dimension
    vocab_size: Dimension
    weights_sha256: Sha256

    def target_dims(self, target: Target) -> tuple[int, int]:
        """`(d_out, d_in)` of one layer's `W0`, unfused and before any tensor parallelism."""
        q, kv = self.num_attention_heads * self.head_size, self.num_kv_heads * self.head_size
        hidden, mlp = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (q, hidden),
            "k_proj": (kv, hidden),
            "v_proj": (kv, hidden),
            "o_proj": (hidden, q),
            "gate_proj": (mlp, hidden),
            "up_proj": (mlp, hidden),
            "down_proj": (hidden, mlp),
        }[target]


class TaskInfo(Frozen):
    """One learned task. `generation` is the one that learned it.

    `recipe_sha256`: of the examples and settings it was learned from, by which learning them again is recognised.
    """

    name: TaskName
    generation: Annotated[int, Field(ge=1, le=MAX_GENERATION)]
    num_train: Count
    num_test: Count
    metrics: Annotated[dict[Annotated[str, StringConstraints(max_length=64)], Finite], Field(max_length=64)] = {}
    recipe_sha256: Sha256 | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_known(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that manifests of version 1 keep their bytes."""
        fields: dict[str, Any] = handler(self)
        return {name: value for name, value in fields.items() if name != "recipe_sha256" or value is not None}


class ExpertInfo(Stored):
    """One set of sub-blocks: `unique` to one task, or `shared` by several (in the manifest's task order)."""

    id: ExpertId
    kind: Literal["unique", "shared"]
    tasks: Annotated[tuple[TaskName, ...], Field(min_length=1, max_length=MAX_TASKS)]
    rank: Annotated[int, Field(ge=1, le=4096)]
    num_blocks: Annotated[int, Field(ge=1, le=1 << 32)]


class GateInfo(Stored):
    """The gate's object; `adapters.gate` knows and checks the tensors of each kind."""

    kind: Literal["analytic", "softmax"]


class ScoresInfo(Stored):
    """Statistics of the tasks' block scores; `adapters.score_history` knows and checks the tensors."""
