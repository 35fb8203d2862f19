"""What learning needs to know, checked once; every default was chosen by measurement (`docs/log.md`)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Preset = Literal["seta", "paper"]
Sharing = Literal["off", "helpful", "frozen", "elastic"]
GateKind = Literal["analytic", "softmax"]
Init = Literal["gradient", "random"]
Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""As in `adapters.bank`, without its import of torch."""


PRESETS: dict[str, dict[str, Any]] = {
    "seta": {},
    "paper": {
        "block_size": 32,
        "rank": 32,
        "init": "random",
        "targets": ("v_proj",),
        "density": 0.25,
        "adaptive_budget": True,
        "divergence": True,
        "sharing": "elastic",
        "share_at_least": 5,
        "gate": "softmax",
        "expansion": "logits",
        "late_start": 0.0,
    },
}
"""What a preset sets, where it is not given. "paper" is arXiv 2606.07500 as far as that says it, for a small model: a
layer's V then has about a hundred blocks, and rank 32 is full rank."""


class LearnSettings(BaseModel):
    """Settings of one `seta learn`; a bank's first generation fixes `trunk_layers`, `block_size`, `targets` and
    the gate.

    The parts of the method can be switched one by one; `docs/method.md` explains them. The paper's symbols are in
    brackets. `preset`: where the others come from if they are not given.

    `density` [rho]: share of the sub-blocks above the trunk that one task may take. `adaptive_budget`: selection goes
    on past it while it finds blocks that no earlier task has. `divergence`: block scores are pushed away from earlier
    tasks' (eq. 4). `rank`: rank of a sub-block's delta; `init`: its rows start along the task's gradient in that block,
    or at random. `late_start`: share of training examples in which the expert starts at a random later token than the
    gate lets it.

    `sharing`: what happens to blocks that earlier tasks hold and the new one wants, too. "off": every task has deltas
    of its own there; "frozen": it composes the earlier ones as they are; "helpful": the same with those experts alone
    that lower its loss; "elastic": they become shared experts that learn on (eq. 6, 7). `share_at_least` [tau_ect]:
    fewer common blocks in a layer are not shared. `keep_at_least` [tau_trt]: a smaller rest of an expert in a layer is
    shared, too. `anchor_strength` [lambda_base]; `anchor_weights`: shared experts that learn are held to what they were
    [L_reg, eq. 9-11]; `anchor_routes`: and the softmax gate is kept from sending the new task to them [L_gate, eq. 12].

    `gate`: "analytic", over tasks, in closed form, or "softmax", the paper's, over experts, learned. `top_k`: how many
    of its columns a token may use; by default 1 and 4. The bank's first generation fixes both. The softmax gate alone:
    `gate_learning_rate`; `expansion`: what a split keeps, the successors' logits or the sum of their probabilities;
    `gate_perturbation`: of the unique successor's row, relative to its length.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    preset: Preset = "seta"
    trunk_layers: int | None = Field(default=None, ge=1, description="default: a fifth of the model's layers")
    block_size: int = Field(default=64, ge=8)
    targets: tuple[Target, ...] = ("down_proj",)
    density: float = Field(default=0.125, gt=0, le=1)
    adaptive_budget: bool = False
    divergence: bool = False
    rank: int = Field(default=16, ge=1, le=4096)
    init: Init = "gradient"
    sharing: Sharing = "off"
    share_at_least: int = Field(default=5, ge=1)
    keep_at_least: int = Field(default=2, ge=0)
    anchor_strength: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    anchor_weights: bool = True
    anchor_routes: bool = True
    gate: GateKind = "analytic"
    top_k: int | None = Field(default=None, ge=1, le=4096)
    gate_learning_rate: float = Field(default=1e-2, gt=0)
    expansion: Literal["logits", "mass"] = "mass"
    gate_perturbation: float = Field(default=0.01, ge=0)
    steps: int = Field(default=160, ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=8e-3, gt=0)
    late_start: float = Field(default=0.25, ge=0, le=1)
    max_tokens: int = Field(default=1024, ge=16, description="longer examples are left out, and counted")
    held_out: float = Field(
        default=0.1, ge=0, lt=1, description="share of a task's examples kept for evaluation when no test file is given"
    )
    seed: int = 0
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        """What is not given is the preset's."""
        preset = given.get("preset", "seta") if isinstance(given, dict) else None
        return {**PRESETS[preset], **given} if isinstance(preset, str) and preset in PRESETS else given

    @property
    def keep(self) -> int:
        """k of a new bank's gate."""
        return self.top_k or (1 if self.gate == "analytic" else 4)

    def trunk_of(self, num_layers: int) -> int:
        return self.trunk_layers if self.trunk_layers is not None else max(1, num_layers // 5)


class RunSettings(BaseModel):
    """How learning is run on this machine; none of it changes what is learned, but for rounding.

    `accumulate`: a step's batch is run in so many parts, one after another, for models that are large for the memory.
    `cache_mib`: how much of the trunk's outputs is kept in memory, the rest is on disk. `checkpoint_seconds`: how often
    it is written where the training is. `compile`: train with decoder layers that torch has compiled. `fresh`: what an
    interrupted call left is dropped. `make_current`: whether each new generation becomes the bank's CURRENT.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    accumulate: int = Field(default=1, ge=1)
    cache_mib: int = Field(default=2048, ge=0)
    checkpoint_seconds: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    compile: bool = False
    fresh: bool = False
    make_current: bool = True


DEFAULT_RUN = RunSettings()
