"""What there is: generations in memory and on disk, and the experts of the one in service, for the admin API."""

import asyncio

from adapters.bank import Bank, BankError, Manifest

from .admin_models import ExpertList, ExpertShare, GenerationInfo, GenerationList, State
from .bank_view import BankView, GenerationView, view
from .generations import Generations, Resident
from .operations import Operations
from .polled import Polled
from .routing_counts import RoutingCounts

_ON_DISK_SECONDS = 5.0


class Inventory:
    """Lists what memory and disk hold. Reading the bank happens in a thread."""

    def __init__(self, bank: Bank, generations: Generations, operations: Operations, tokens: RoutingCounts) -> None:
        self._bank = bank
        self._generations = generations
        self._operations = operations
        self._tokens = tokens
        self._on_disk: Polled[dict[int, Manifest]] = Polled(
            self._read_disk, {}, "the bank's generations", min_age_seconds=_ON_DISK_SECONDS
        )

    async def bank(self) -> BankView:
        """What serves and how the bank grew. Clients may ask, so the disk is read now and then only."""
        await self._on_disk.refresh()
        return view(self._generations.manifest, self._on_disk.value | self._generations.manifests)

    async def generation(self, number: int) -> GenerationView:
        """One generation, from memory or disk. Raises: BankError."""
        resident = self._generations.residents.get(number)
        manifest = resident.manifest if resident else await asyncio.to_thread(self._bank.manifest, number)
        return GenerationView.of(manifest)

    async def _read_disk(self) -> dict[int, Manifest]:
        manifests, _ = await asyncio.to_thread(_read_all, self._bank)
        return manifests

    async def generations(self) -> GenerationList:
        on_disk, problems = await asyncio.to_thread(_read_all, self._bank)
        residents = self._generations.residents
        manifests = on_disk | self._generations.manifests
        return GenerationList(
            serving=self._generations.current,
            rollback_to=self._operations.rollback_to,
            max_resident=self._operations.max_resident,
            base_in_flight=self._generations.base_in_flight,
            generations=[
                self._info(manifest, residents.get(number), number in on_disk)
                for number, manifest in sorted(manifests.items())
            ],
            problems=problems,
        )

    async def experts(self) -> ExpertList:
        await self._tokens.refresh()
        manifest, tokens = self._generations.manifest, self._tokens.by_expert
        total = self._tokens.total
        experts = [
            ExpertShare(
                **expert.model_dump(exclude={"tasks"}),
                tasks=list(expert.tasks),
                tokens=tokens.get(expert.id, 0),
                token_share=tokens.get(expert.id, 0) / total if total else 0.0,
            )
            for expert in manifest.experts
        ]
        return ExpertList(
            generation=manifest.generation, total_tokens=total, base_tokens=self._tokens.base, experts=experts
        )

    def _info(self, manifest: Manifest, resident: Resident | None, is_on_disk: bool) -> GenerationInfo:
        number = manifest.generation
        return GenerationInfo(
            generation=number,
            state=self._state(number, resident),
            model=self._generations.pinned_name(number) if resident is not None and resident.is_open else None,
            is_pinned=resident is not None and resident.is_pinned,
            is_on_disk=is_on_disk,
            in_flight=0 if resident is None else resident.in_flight,
            object_bytes=sum(ref.object_bytes for ref in manifest.refs),
            resident_bytes=None if resident is None else resident.resident_bytes,
            created=manifest.created,
            parent=manifest.parent,
            tasks=[task.name for task in manifest.tasks],
            manifest_sha256=manifest.digest,
        )

    def _state(self, number: int, resident: Resident | None) -> State:
        if resident is None:
            return "loading" if number == self._operations.loading else "on disk"
        if number == self._generations.current:
            return "serving"
        if resident.is_open:
            return "resident"
        return "loading" if resident.orders else "retiring"


def _read_all(bank: Bank) -> tuple[dict[int, Manifest], list[str]]:
    """Every manifest that can be read, and a line for each that cannot."""
    manifests, problems = {}, []
    try:
        numbers = bank.generations()
    except BankError as error:
        return {}, [str(error)]
    for number in numbers:
        try:
            manifests[number] = bank.manifest(number)
        except BankError as error:
            problems.append(str(error))
    return manifests, problems
