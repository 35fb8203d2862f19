"""What a bank knows and how it grew, for people: the generation in service, and a line for each one on disk.

`GET /v1/bank` gives it to clients, `/admin/v1/bank` to administrators. Like `/metrics` it names tasks and experts; no
path, no example and no weight is in it.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from adapters.bank import BaseModelInfo, ExpertInfo, GateInfo, Manifest, TaskInfo

from .service import serving_of

router = APIRouter()


class View(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GenerationView(View):
    """A manifest without its settings; the fields are the manifest's (`docs/design.md`)."""

    generation: int
    parent: int | None
    created: datetime
    base: BaseModelInfo
    trunk_layers: int
    block_size: int
    targets: list[str]
    tasks: list[TaskInfo]
    experts: list[ExpertInfo]
    gate: GateInfo
    accuracy_matrix: Annotated[list[list[float]], Field(description="Row i: percent, after learning task i.")]
    manifest_sha256: Annotated[str, Field(description="Stands for all of its contents.")]

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        fields = {name: getattr(manifest, name) for name in cls.model_fields if name != "manifest_sha256"}
        return cls.model_validate(fields | {"manifest_sha256": manifest.digest}, from_attributes=True)


class Growth(View):
    """One generation of a growing bank."""

    generation: int
    parent: int | None
    created: datetime
    num_tasks: int
    num_unique: Annotated[int, Field(description="Experts of one task.")]
    num_shared: Annotated[int, Field(description="Experts of several tasks.")]
    unique_bytes: int
    shared_bytes: int
    mean_accuracy: Annotated[float | None, Field(description="Of all its tasks, percent; null if not measured.")]

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        sizes: dict[str, list[int]] = {"unique": [], "shared": []}
        for expert in manifest.experts:
            sizes[expert.kind].append(expert.object_bytes)
        last = manifest.accuracy_matrix[-1] if manifest.accuracy_matrix else ()
        return cls(
            generation=manifest.generation,
            parent=manifest.parent,
            created=manifest.created,
            num_tasks=len(manifest.tasks),
            num_unique=len(sizes["unique"]),
            num_shared=len(sizes["shared"]),
            unique_bytes=sum(sizes["unique"]),
            shared_bytes=sum(sizes["shared"]),
            mean_accuracy=sum(last) / len(last) if last else None,
        )


class BankView(View):
    serving: GenerationView
    generations: Annotated[list[Growth], Field(description="Those in memory or on disk, by number.")]


def view(serving: Manifest, manifests: Mapping[int, Manifest]) -> BankView:
    growth = [Growth.of(manifest) for _, manifest in sorted(manifests.items())]
    return BankView(serving=GenerationView.of(serving), generations=growth)


@router.get("/v1/bank")
async def bank(request: Request) -> BankView:
    """What the generation in service knows, and how the bank grew. The list may be some seconds old."""
    return await serving_of(request).administration.inventory.bank()
