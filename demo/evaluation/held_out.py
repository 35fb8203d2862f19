"""Inspect's task over a file of held-out examples: JSON lines with "prompt" and "answer", as `seta learn` reads."""

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState, generate

REPO = Path(__file__).resolve().parents[2]


@task
def held_out(file: str = "build/demo/tasks/foods/test.jsonl") -> Task:
    """`file` is taken from the repository's root, or absolute."""
    return Task(
        dataset=json_dataset(str(REPO / file), FieldSpec(input="prompt", target="answer")),
        solver=generate(),
        scorer=same_text(),
        config=GenerateConfig(temperature=0, max_tokens=32),
    )


@scorer(metrics=[accuracy(), stderr()])
def same_text() -> Scorer:
    """Right if the answer, stripped, is the expected text: Inspect's own `exact` also forgives case and punctuation."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion.strip()
        return Score(value=CORRECT if answer == target.text else INCORRECT, answer=answer)

    return score
