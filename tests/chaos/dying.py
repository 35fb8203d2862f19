"""Learn in processes that are killed with SIGKILL at chosen moments, and again until it is done.

Run as a program: it imports everything once, and each process is a fork of it. A moment is a step of any kind of work
(a training step, a batch of the trunk's, a warm-up step...) or a step that changes the disk; a write is cut in half.
"""

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapters import learner as learner_module
from adapters.backbone import Backbone
from adapters.bank.files import Disk
from adapters.calibrate import general_prompts
from adapters.learn import learn_tasks
from adapters.progress import Steps
from adapters.settings import LearnSettings, RunSettings
from tests.adapters.learning import TEST, TRAIN

RUN = RunSettings(checkpoint_seconds=0, cache_mib=0)
DISK_STEPS = ("mkdir", "create", "write", "fsync", "rename", "fsync_dir", "touch", "unlink")


class Counter:
    """Counts moments; the process ends at the one whose number is `die_at`."""

    def __init__(self, die_at: int | None) -> None:
        self.die_at, self.seen = die_at, 0

    def is_the_end(self) -> bool:
        self.seen += 1
        return self.seen - 1 == self.die_at

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            if self.is_the_end():
                if function.__name__ == "write":
                    os.write(arguments[1], arguments[2][: len(arguments[2]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return counted


def learn(bank: Path, model: str, settings: LearnSettings, die_at: int | None) -> int | None:
    """In a process of its own. How many moments it took, None if it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 1
        try:
            counter = Counter(die_at)
            for name in DISK_STEPS:
                setattr(Disk, name, counter.before(getattr(Disk, name)))
            Steps.advance = counter.before(Steps.advance)  # type: ignore[method-assign]
            prompts = general_prompts()[:12]
            learner_module.general_prompts = lambda: prompts
            learn_tasks(bank, model, TRAIN, TEST, settings, RUN)
            os.write(writer, str(counter.seen).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert os.WEXITSTATUS(status) == 0, "learning failed"
    return int(said)


def contents(bank: Path) -> dict[str, str]:
    """Every file's bytes, in hex."""
    return {str(path.relative_to(bank)): path.read_bytes().hex() for path in sorted(bank.rglob("*")) if path.is_file()}


def main() -> None:
    """argv: a directory, a model, the settings as JSON. Prints a line of JSON for each moment."""
    root, model, settings = Path(sys.argv[1]), sys.argv[2], LearnSettings(**json.loads(sys.argv[3]))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # SOURCE_DATE_EPOCH and one thread (a fork has no others) are given
    Backbone.load(Path(model))  # so that no process has to import what it takes
    total = learn(root / "whole", model, settings, None)
    assert total is not None
    expected = contents(root / "whole")
    rng = random.Random(0)
    for moment in range(total):
        bank, deaths, die_at = root / f"killed-{moment}", 0, moment
        while learn(bank, model, settings, die_at) is None:
            deaths += 1
            die_at = rng.randrange(total) if deaths < 3 else total * 2  # it may be killed again on the way
        found = contents(bank)
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        print(json.dumps({"moment": moment, "of": total, "deaths": deaths, "differing": differing}), flush=True)


if __name__ == "__main__":
    main()
