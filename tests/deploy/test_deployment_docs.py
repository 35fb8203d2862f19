"""docs/deployment.md: the files that it names exist, and its loop over the rules makes rules."""

import re
import shutil
import subprocess
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
