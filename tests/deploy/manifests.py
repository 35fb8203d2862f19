"""The Kubernetes manifests, read; those that kustomize would name or fill in are named and filled in."""

from pathlib import Path
from typing import Any

import yaml

from tests.deploy.dockerfile import REPO

ROOT = REPO / "deploy" / "kubernetes"


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def kustomization(folder: str) -> dict[str, Any]:
    (found,) = documents(ROOT / folder / "kustomization.yaml")
    return found


def base() -> dict[tuple[str, str], dict[str, Any]]:
    """(kind, name) → manifest, of all that the base's kustomization lists."""
    found = [one for name in kustomization("base")["resources"] for one in documents(ROOT / "base" / name)]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def settings() -> dict[str, str]:
    """The generated config map."""
    (generated,) = kustomization("base")["configMapGenerator"]
    return dict(line.split("=", 1) for line in generated["literals"])


def job() -> dict[str, Any]:
    (found,) = documents(ROOT / "jobs" / "learn.yaml")
    return found
