"""docs/deployment.md: the files that it names exist, and its loop over the rules makes rules."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.deploy.dockerfile import REPO, stages

TEXT = (REPO / "docs" / "deployment.md").read_text()


def test_files_that_it_names_exist() -> None:
    named = set(re.findall(r"(?:deploy|docs|tests|requirements)/[\w./-]*\w", TEXT)) - {"deploy/.env"}
    made = {name for name in named if name.startswith("deploy/secrets")}
    rules = {"deploy/prometheus/"}
    assert len(named) > 15
    assert not [name for name in named - made - rules if not (REPO / name).exists()]
    assert not [link for link in re.findall(r"\]\(([\w.]+)\)", TEXT) if not (REPO / "docs" / link).exists()]


def test_the_images_are_the_dockerfiles_targets() -> None:
    built = re.findall(r"docker build --target (\w+) +-t seta:(\w+)", TEXT)
    assert built == [("cpu", "cpu"), ("cuda", "cuda")] and {target for target, _ in built} <= set(stages())


def test_the_secrets_are_made_as_shown(tmp_path: Path) -> None:
    """The lines as they stand on the page, in an empty folder; then Compose has what it wants, but for copied keys."""
    (tmp_path / "deploy").mkdir()
    seta = tmp_path / "seta"
    seta.write_text(f'#!/bin/sh\nexec {sys.executable} -m server.cli "$@"\n')
    seta.chmod(0o755)
    lines = TEXT[TEXT.index("    mkdir -m 700") : TEXT.index("    export SETA_MODEL")]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(REPO)}
    done = subprocess.run(["sh", "-ec", lines], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "deploy" / "secrets"
    made = {path.name: path.read_text() for path in folder.iterdir()}
    wanted = yaml.safe_load((REPO / "deploy" / "compose.yml").read_text())["secrets"]
    assert set(made) == set(wanted) - {"admin-key", "metrics-key"}  # the page says which of the printed keys go there
    assert [line.split()[0] for line in made["api-keys"].splitlines()] == ["alice", "prometheus"]
    assert len(made["grafana-password"]) > 30
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_the_loop_over_rules_makes_prometheus_rules(tmp_path: Path) -> None:
    """As it stands on the page, with a `kubectl` that only writes down what it was given."""
    loop = TEXT[TEXT.index("    for rules in") : TEXT.index("kubectl apply -f -")] + "kubectl apply -f -\n"
    fake = tmp_path / "kubectl"
    fake.write_text(f"#!/bin/sh\n{shutil.which('cat')} > {tmp_path / 'out.yaml'}\n")
    fake.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    subprocess.run(["sh", "-ec", loop], cwd=REPO, env={"PATH": path}, check=True)
    made = [one for one in yaml.safe_load_all((tmp_path / "out.yaml").read_text()) if one]
    assert [one["metadata"]["name"] for one in made] == ["seta-recording", "seta-alerts"]
    for one in made:
        source = REPO / "deploy" / "prometheus" / (one["metadata"]["name"].removeprefix("seta-") + ".yml")
        assert one["spec"] == yaml.safe_load(source.read_text())
