"""Which generations are in memory, which one serves, and what a model name means.

    NAME        the generation in service         NAME@<n>   generation n, if it is in memory
    NAME-base   the base model without experts    no name    the same as NAME

`resolve` runs when a request is admitted and turns its name into one of the last two; from there on the request keeps
that generation, whatever serves by the time it ends. The table is vLLM's own (`OpenAIServingModels.lora_requests`, name
to `LoRARequest`); it is changed only in the event loop, in one assignment, so no request ever sees half a change.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapters.bank import Bank, Manifest

from .errors import ApiError

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

AddLora = Callable[["LoRARequest"], Awaitable[Any]]


@dataclass(frozen=True)
class Target:
    """What a request was bound to: the name vLLM knows it by, and its generation (None: the base model)."""

    model: str
    generation: int | None

    @property
    def headers(self) -> dict[str, str]:
        return {"x-seta-generation": "base" if self.generation is None else str(self.generation)}


class Generations:
    """The resident generations of one bank. Use from the event loop only."""

    def __init__(
        self, name: str, base_name: str, bank: Bank, add_lora: AddLora, table: MutableMapping[str, "LoRARequest"]
    ) -> None:
        self.name = name
        self.base_name = base_name
        self.bank = bank
        self.manifests: dict[int, Manifest] = {}
        self._add_lora = add_lora
        self._table = table
        self._current: int | None = None

    @property
    def current(self) -> int:
        assert self._current is not None, "no generation is in service yet"
        return self._current

    @property
    def manifest(self) -> Manifest:
        """The manifest of the generation in service."""
        return self.manifests[self.current]

    @property
    def names(self) -> list[str]:
        """Every model name a client may use."""
        return [self.name, *(self.pinned_name(number) for number in sorted(self.manifests)), self.base_name]

    def pinned_name(self, number: int) -> str:
        return f"{self.name}@{number}"

    async def load_current(self) -> float:
        """Load the bank's current generation and serve it; the seconds it took. Raises: what the runtime raised."""
        start = time.monotonic()
        manifest = self.bank.manifest()
        await self.load(manifest)
        self.activate(manifest.generation)
        return time.monotonic() - start

    async def load(self, manifest: Manifest) -> None:
        """Bring a generation into memory; requests may name it from then on."""
        from vllm.lora.request import LoRARequest

        number = manifest.generation
        request = LoRARequest(
            lora_name=self.pinned_name(number),
            lora_int_id=number + 1,  # vLLM reserves 0
            lora_path=str(self.bank.root / "generations" / f"{number:05d}.json"),
        )
        await self._add_lora(request)
        self.manifests[number] = manifest
        self._table[request.lora_name] = request

    def activate(self, number: int) -> None:
        """Serve a generation that is in memory."""
        assert number in self.manifests, f"generation {number} is not in memory"
        self._current = number

    def resolve(self, model: object) -> Target:
        """Raises: ApiError 404 for a name nobody serves, 400 for what is not a name."""
        if model is None or model == "" or model == self.name:
            return Target(self.pinned_name(self.current), self.current)
        if not isinstance(model, str):
            raise ApiError(400, "model must be a string", param="model")
        if model == self.base_name:
            return Target(model, None)
        if model in self._table:
            return Target(model, self._table[model].lora_int_id - 1)
        raise ApiError(
            404,
            f"The model {_shown(model)} does not exist; this server has: {', '.join(self.names)}",
            param="model",
            code="model_not_found",
        )


def _shown(model: str) -> str:
    return repr(model if len(model) <= 100 else model[:100] + "…")
