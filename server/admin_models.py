"""What the admin API takes and answers: the schema behind its OpenAPI document."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from adapters.bank.info import MAX_GENERATION

GenerationNumber = Annotated[int, Field(ge=0, le=MAX_GENERATION)]
State = Literal["serving", "resident", "loading", "retiring", "on disk"]


class Order(BaseModel):
    """A request's body: unknown fields are errors, and nothing is converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ActivateOrder(Order):
    generation: GenerationNumber
    expected_generation: Annotated[
        GenerationNumber | None, Field(description="Refuse with 409 unless this one serves. Null: whichever serves.")
    ] = None


class RollbackOrder(Order):
    expected_generation: Annotated[
        GenerationNumber | None, Field(description="Refuse with 409 unless this one serves. Null: whichever serves.")
    ] = None


class RetireOrder(Order):
    generation: GenerationNumber


class GenerationInfo(BaseModel):
    """One generation, in memory, on disk, or both."""

    generation: int
    state: Annotated[State, Field(description="retiring: takes no new request, leaves memory after its last one.")]
    model: Annotated[str | None, Field(description="The model name that asks for it, if it takes requests.")]
    is_pinned: Annotated[bool, Field(description="Stays in memory until it is unpinned.")]
    is_on_disk: bool
    in_flight: Annotated[int, Field(description="Requests that it still answers.")]
    object_bytes: Annotated[int, Field(description="Size of its objects on disk; generations share most of them.")]
    resident_bytes: Annotated[int | None, Field(description="Size in memory; null if it is not there.")]
    created: datetime
    parent: int | None
    tasks: list[str]
    manifest_sha256: Annotated[str, Field(description="Stands for all of its contents.")]


class GenerationList(BaseModel):
    serving: int
    rollback_to: Annotated[int | None, Field(description="What a roll-back would serve; null: nothing served before.")]
    max_resident: Annotated[int, Field(description="Generations that may be in memory.")]
    base_in_flight: Annotated[int, Field(description="Requests to the base model.")]
    generations: list[GenerationInfo]
    problems: Annotated[list[str], Field(description="What of the bank cannot be read.")]


class ExpertShare(BaseModel):
    id: str
    kind: Literal["unique", "shared"]
    tasks: list[str]
    rank: int
    num_blocks: int
    object: Annotated[str, Field(description="SHA-256 of the expert's object.")]
    object_bytes: int
    tokens: Annotated[int, Field(description="Tokens it has answered since the server started.")]
    token_share: Annotated[float, Field(description="The same as a share of all tokens, 0 to 1.")]


class ExpertList(BaseModel):
    """The experts of the generation in service, and what they answered, whichever generation they were part of."""

    generation: int
    total_tokens: int
    base_tokens: int
    experts: list[ExpertShare]


class Changed(BaseModel):
    serving: int
    previous: Annotated[int, Field(description="What served before this order; the same if nothing changed.")]
    seconds: float


class Retired(BaseModel):
    generation: int
    in_flight: Annotated[int, Field(description="Requests that it still answers before it leaves memory.")]


class Pinned(BaseModel):
    generation: int
    is_pinned: bool
    resident_bytes: int


class StoredObject(BaseModel):
    object: Annotated[str, Field(description="SHA-256 of its bytes.")]
    object_bytes: int


class Missing(BaseModel):
    """What an archive of this manifest must hold."""

    generation: int
    is_in_bank: bool
    objects: list[StoredObject]


class Uploaded(BaseModel):
    generation: int
    manifest_sha256: str


class ErrorInfo(BaseModel):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: Annotated[str | None, Field(description="Stable; for programs. See docs/operations.md.")]
    details: Annotated[dict[str, Any] | None, Field(description="Depends on the code.")] = None


class ErrorAnswer(BaseModel):
    error: ErrorInfo
