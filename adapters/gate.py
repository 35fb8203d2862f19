"""The gate: one routing decision per token, `p_t` = read-out of the pooled evidence `z̄_t` (`adapters.evidence`).

Its features cannot drift; so a gate that is fitted in closed form from per-task statistics, the analytic one, does not
forget. `load_gate` reads either kind, `store_gate` writes it; `adapters.softmax_gate` has the other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from adapters.bank import Bank, BankCorrupt, GateInfo, Manifest
from adapters.evidence import Columns, Evidence, Gate, whitened_direction
from adapters.softmax_gate import SoftmaxGate

RIVAL_MARGIN = 0.1
"""Only tasks whose cosine is this close to the nearest one's share its probability; the others are out."""

TIE_LOGITS = 4.0
TIE_MARGIN = 0.25
"""Of the tasks within this margin of the nearest one's cosine, those this close to the best in logits cannot be told
apart yet: their prompts begin alike. The oldest of them decides, so learning a task does not move the tokens of those
before it (`docs/method.md`). The margin bounds the discriminants, which share the tasks' pooled scatter: without it, a
task learned later could claim tokens that are clearly an older one's."""


@dataclass(frozen=True)
class AnalyticGate:
    """Closed form, from per-task sufficient statistics: fitting tasks in turn, in any order, is fitting them jointly.

    "Is it known?" is a cosine in the space that general text whitens, between the prefix mean and a task's mean; it
    depends on that task and the base model alone. "Which one is it?" is linear-discriminant analysis with the tasks'
    pooled within-scatter and a ridge.

    Shapes: `base_mean [c]`, `base_whitener [c, c]`, `count [tasks]`, `mean [tasks, c]`, `scatter [c, c]` (sum over the
    tasks of their scatter about their own mean), `threshold`, `sharpness`, `temperature`, `ridge`, `keep [1]` (k of
    top-k).
    """

    kind: ClassVar[Literal["analytic"]] = "analytic"
    columns: ClassVar[Columns] = "tasks"

    projection: Tensor
    content_weight: Tensor
    content_bias: Tensor
    base_mean: Tensor
    base_whitener: Tensor
    count: Tensor
    mean: Tensor
    scatter: Tensor
    threshold: Tensor
    sharpness: Tensor
    temperature: Tensor
    ridge: Tensor
    keep: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "_evidence", Evidence(self.projection, self.content_weight, self.content_bias))
        object.__setattr__(self, "_directions", self._task_directions())
        object.__setattr__(self, "_read_out", self._discriminants())
        object.__setattr__(self, "_top_k", int(self.keep))

    @property
    def top_k(self) -> int:
        return self._top_k  # type: ignore[attr-defined]

    @property
    def is_mixture(self) -> bool:
        return self.top_k > 1

    @property
    def width(self) -> int:
        return self.projection.shape[1]

    @property
    def num_tasks(self) -> int:
        return len(self.count)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device) -> AnalyticGate:
        return AnalyticGate(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def evidence(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self._evidence(hidden)  # type: ignore[attr-defined]

    def similarity(self, pooled: Tensor) -> Tensor:
        """Cosine to every task's mean in the whitened space: `[..., c]` → `[..., tasks]`."""
        return whitened_direction(pooled, self.base_mean, self.base_whitener) @ self._directions  # type: ignore[attr-defined]

    def probabilities(self, pooled: Tensor) -> Tensor:
        """pooled `[..., c]` → `[..., tasks + 1]`, the last column is "base"; rows sum to 1."""
        return self.judge(pooled)[1]

    def decide(self, pooled: Tensor) -> Tensor:
        """The weights that serve, `[..., tasks]`.

        k = 1: the oldest of the tasks that cannot be told apart, where it is known by itself, that is by its own
        cosine. k > 1: the k likeliest tasks, renormalised. All zero where no task is likelier than not.
        """
        return self.judge(pooled)[0]

    def judge(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """`decide` and `probabilities`, computed once."""
        if not self.num_tasks:
            return pooled.new_zeros(*pooled.shape[:-1], 0), pooled.new_ones(*pooled.shape[:-1], 1)
        weight, bias = self._read_out  # type: ignore[attr-defined]
        similarity = self.similarity(pooled)
        nearest = similarity.amax(-1, keepdim=True)
        logits = (pooled @ weight + bias) / self.temperature
        rivals = logits.masked_fill(similarity < nearest - RIVAL_MARGIN, -torch.inf)
        known = torch.sigmoid((nearest - self.threshold) * self.sharpness)
        probabilities = torch.cat([torch.softmax(rivals, dim=-1) * known, 1 - known], dim=-1)
        if self.is_mixture:
            return self._likeliest(probabilities[..., :-1]), probabilities
        close = logits.masked_fill(similarity < nearest - TIE_MARGIN, -torch.inf)
        is_tied = close >= close.amax(-1, keepdim=True) - TIE_LOGITS
        oldest = is_tied.byte().argmax(-1, keepdim=True)  # the first one: tasks are in the order they were learned
        is_known = similarity.gather(-1, oldest) > self.threshold
        return torch.zeros_like(similarity).scatter(-1, oldest, is_known.to(similarity.dtype)), probabilities

    def _likeliest(self, tasks: Tensor) -> Tensor:
        kept = tasks.topk(min(self.top_k, self.num_tasks), dim=-1)
        shares = kept.values / kept.values.sum(-1, keepdim=True).clamp_min(1e-30)
        weights = torch.zeros_like(tasks).scatter(-1, kept.indices, shares)
        return weights * (tasks.amax(-1, keepdim=True) > 0.5)

    def with_task(self, pooled: Tensor) -> AnalyticGate:
        """The gate that also knows a task with prefix means `pooled [n, c]`; the earlier tasks' means are unchanged."""
        samples = pooled.double()
        mean = samples.mean(0)
        centred = samples - mean
        return replace(
            self,
            count=torch.cat([self.count, torch.tensor([float(len(samples))])]),
            mean=torch.cat([self.mean, mean.float().unsqueeze(0)]),
            scatter=(self.scatter.double() + centred.T @ centred).float(),
        )

    @staticmethod
    def shapes(num_tasks: int, num_experts: int, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
        """Of the tensors of a generation's gate, by name; the projection first."""
        return {
            "projection": (hidden, width),
            "content_weight": (hidden,),
            "content_bias": (1,),
            "base_mean": (width,),
            "base_whitener": (width, width),
            "count": (num_tasks,),
            "mean": (num_tasks, width),
            "scatter": (width, width),
            **{name: (1,) for name in ("threshold", "sharpness", "temperature", "ridge", "keep")},
        }

    def _task_directions(self) -> Tensor:
        return whitened_direction(self.mean, self.base_mean, self.base_whitener).T.contiguous()

    def _discriminants(self) -> tuple[Tensor, Tensor]:
        """LDA: weight `[c, tasks]` = Σ⁻¹ μ_k, bias = -½ μ_kᵀ Σ⁻¹ μ_k.

        The priors are equal: a task is not likelier for having more data.
        """
        covariance = self.scatter.double() / self.count.double().sum().clamp_min(1)
        scale = covariance.diagonal().mean().clamp_min(1e-12)
        ridge = self.ridge.double()
        identity = torch.eye(self.width, dtype=torch.float64, device=covariance.device)
        shrunk = (1 - ridge) * covariance + ridge * scale * identity
        mean = self.mean.double()
        weight = torch.linalg.solve(shrunk, mean.T)
        return weight.float().contiguous(), (-0.5 * (mean.T * weight).sum(0)).float()


def store_gate(bank: Bank, gate: Gate) -> GateInfo:
    """Write a gate's tensors as an object of the bank; what a manifest says of them."""
    return GateInfo(kind=gate.kind, **bank.put_object(gate.tensors())._asdict())


def load_gate(manifest: Manifest, tensors: dict[str, Tensor]) -> Gate:
    """The gate of a generation, its tensors' names, dtypes and shapes checked. Raises BankCorrupt."""
    kinds: dict[str, type[AnalyticGate] | type[SoftmaxGate]] = {"analytic": AnalyticGate, "softmax": SoftmaxGate}
    kind, where = kinds[manifest.gate.kind], f"gate of generation {manifest.generation}"
    width = tensors["projection"].shape[-1] if "projection" in tensors and tensors["projection"].ndim else 0
    expected = kind.shapes(len(manifest.tasks), len(manifest.experts), manifest.base.hidden_size, width)
    if set(tensors) != set(expected):
        raise BankCorrupt(f"{where} has tensors {sorted(tensors)}, expected {sorted(expected)}; learn the bank again")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
            raise BankCorrupt(
                f"{where}: {name} is {tensor.dtype} {list(tensor.shape)}, expected float32 {list(shape)}; "
                "learn the bank again"
            )
    kv_width = manifest.base.num_kv_heads * manifest.base.head_size
    if width > kv_width:
        raise BankCorrupt(
            f"{where} is {width} wide, one layer's KV cache holds {kv_width} values; learn the bank again"
        )
    if "membership" in tensors and not _is_membership(tensors["membership"], manifest):
        raise BankCorrupt(f"{where}: its membership is not the manifest's; learn the bank again")
    return kind(**tensors)


def _is_membership(matrix: Tensor, manifest: Manifest) -> bool:
    expected = torch.zeros_like(matrix)
    for column, rows in enumerate(manifest.tasks_by_expert):
        expected[rows, column] = 1
    return torch.equal(matrix, expected)
