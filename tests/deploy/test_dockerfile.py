"""What the two images promise, read from the Dockerfile; tests/chaos/test_image.py carries its steps out."""

from pathlib import PurePosixPath

import pytest

from server.health import router
from tests.deploy.commands import parse
from tests.deploy.dockerfile import REPO, context, copied, ignore_patterns, ignored, stages
from tests.test_packaging import PROJECT

STAGES = stages()
TARGETS = ("cpu", "cuda")
KEPT_OUT = (".git/config", ".venv/bin/python", "build/models/x/config.json", "demo/bank/CURRENT", "tests/tiny.py")
SECRETS = ("deploy/secrets/admin-key", "deploy/.env")


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_an_ordinary_user_who_exists(target: str) -> None:
    user = STAGES[target].last("USER")
    assert user.isdigit() and int(user) > 0  # a number: Kubernetes' runAsNonRoot understands no names
    assert f"useradd --uid {user} " in STAGES["base"].last("RUN")
    names = [name for name, _ in STAGES[target].instructions]
    assert names.index("USER") > max(at for at, name in enumerate(names) if name in ("RUN", "COPY"))


@pytest.mark.parametrize("target", TARGETS)
def test_the_entry_point_is_a_command_that_exists(target: str) -> None:
    stage = STAGES[target]
    given = parse(stage.words("ENTRYPOINT") + stage.words("CMD"))
    assert (given["host"], given["model"], str(given["bank"]), given["name"]) == ("0.0.0.0", "/model", "/bank", "seta")
    assert str(given["port"]) == stage.last("EXPOSE")
    assert stage.last("STOPSIGNAL") in ("SIGINT", "SIGTERM")


@pytest.mark.parametrize("target", TARGETS)
def test_the_health_check_asks_the_servers_own_route(target: str) -> None:
    command = STAGES[target].health_command
    assert command[:2] == ["python", "-c"]
    compile(command[2], "HEALTHCHECK", "exec")
    assert f"http://127.0.0.1:{STAGES[target].last('EXPOSE')}/health'" in command[2]
    assert "/health" in {route.path for route in router.routes}  # type: ignore[attr-defined]


@pytest.mark.parametrize("target", TARGETS)
def test_every_stage_that_is_built_on_is_there(target: str) -> None:
    sources = [rest.split()[0].removeprefix("--from=") for rest in STAGES[target].all("COPY")]
    assert sources == [f"{target}-install"]
    assert STAGES[target].base == STAGES[f"{target}-install"].base == "base"
    image, tag = STAGES["base"].base.split(":")
    assert image == "python" and tag.removeprefix("3.").split("-")[0].isdigit()


def test_copy_names_files_that_a_build_is_sent() -> None:
    sent = {str(path) for path in context()}
    sources = [source for stage in STAGES.values() for source in copied(stage) if source != "."]
    assert sources and set(sources) <= sent


def test_the_cpu_image_installs_the_lock_and_resolves_nothing() -> None:
    *torch, ours = STAGES["cpu-install"].all("RUN")
    (lock,) = torch
    first, second, third = lock.split(" && ")
    assert first == "grep -E '^torch==' requirements/cpu.lock > requirements/torch.lock"
    assert second.endswith("-r requirements/torch.lock") and "--no-deps" in second and "--index-url" in second
    assert third == "pip install --no-deps -r requirements/cpu.lock"
    assert ours == "pip install --no-deps --no-build-isolation ."
    assert "setuptools==" in (REPO / "requirements/cpu.lock").read_text()  # what builds without isolation


def test_the_cuda_image_installs_the_extra_of_that_name() -> None:
    assert STAGES["cuda-install"].all("RUN") == ["pip install '.[cuda]'"]
    assert [line.split("==")[0] for line in PROJECT["project"]["optional-dependencies"]["cuda"]] == ["vllm"]


def test_a_build_is_sent_all_that_is_shipped_and_nothing_else() -> None:
    sent = [str(path) for path in context()]
    shipped = {name.partition(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}
    for top in shipped:
        files = {str(path.relative_to(REPO)) for path in (REPO / top).rglob("*") if path.is_file()}
        assert {path for path in files if "__pycache__" not in path} <= set(sent)
    assert {"pyproject.toml", "README.md", "LICENSE", "requirements/cpu.lock"} <= set(sent)
    assert {path.partition("/")[0] for path in sent if "/" in path} <= shipped | {"requirements"}


@pytest.mark.parametrize("path", [*KEPT_OUT, *SECRETS, "server/__pycache__/x.pyc", "seta.egg-info/PKG-INFO"])
def test_what_a_build_is_not_sent(path: str) -> None:
    assert ignored(PurePosixPath(path), ignore_patterns())
