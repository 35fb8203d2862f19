"""Settings of the methods that SETA is compared with; what their papers leave open is chosen in `docs/benchmark.md`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from adapters.settings import LearnSettings, RunSettings, Target

COMMON = LearnSettings()
ALL_LINEARS: tuple[Target, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _compile(gain: str) -> Any:
    """Left out of a cell's key: the same computation with other rounding is the same cell."""
    what = f"compile the decoder layers: {gain} less time a step, after a minute or two; needs a C++ compiler"
    return Field(default=False, exclude=True, description=what)


class SetaSettings(LearnSettings):
    """The method's own, and how it is run."""

    compile: bool = _compile("a sixth to a fifth")

    @property
    def run(self) -> RunSettings:
        return RunSettings(compile=self.compile)


class LoraSettings(BaseModel):
    """One plain LoRA, `W0 + (alpha / rank) B A`, on every linear of every decoder layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    targets: tuple[Target, ...] = ALL_LINEARS
    steps: int = Field(default=COMMON.steps, ge=1, description="a task; for joint: times the number of tasks")
    batch_size: int = Field(default=COMMON.batch_size, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    max_tokens: int = Field(default=COMMON.max_tokens, ge=16)
    seed: int = 0
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    compile: bool = _compile("a third")


class EwcSettings(LoraSettings):
    strength: float = Field(default=1000.0, ge=0, description="the penalty's weight")
    fisher_examples: int = Field(default=64, ge=1)


class OLoraSettings(LoraSettings):
    """The weights of both terms are those of the authors' code."""

    orthogonality: float = Field(default=0.5, ge=0)
    shrinkage: float = Field(default=0.0, ge=0)


class ILoraSettings(LoraSettings):
    """The authors keep 500 examples where a task has 5,000; `memory` is the same tenth of 500."""

    memory: int = Field(default=50, ge=1, description="examples kept of all tasks together")
    replay_batch: int = Field(default=8, ge=1, description="memory examples a step")
    decay: float = Field(default=0.99, ge=0, lt=1, description="of the slow weights, a step")
    consistency: float = Field(default=1.0, ge=0)
