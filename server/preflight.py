"""What can be said before the engine starts: is all installed, which generation serves, does it fit this base?"""

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from adapters.bank import Bank, BankError, Manifest, check_base
from adapters.base_model import BaseModelError, fingerprint, resolve_model_dir

from .config import ServeConfig, ServeError


@dataclass(frozen=True)
class Plan:
    """What will be served: a model on local disk and a bank whose current generation belongs to it."""

    model_dir: Path
    bank: Bank
    manifest: Manifest


def check(config: ServeConfig) -> Plan:
    """Raises: ServeError if installation, options, bank, its current generation or the base model will not do."""
    check_installation()
    check_engine(config)
    try:
        bank = Bank.open(config.bank)
        manifest = bank.manifest()
        _read_all(bank, manifest)
    except BankError as error:
        raise ServeError(f"--bank {config.bank.name}: {error}") from error
    try:
        model_dir = resolve_model_dir(config.model)
        check_base(manifest, fingerprint(model_dir))
    except (BaseModelError, BankError) as error:
        raise ServeError(f"--model {config.model}: {error}") from error
    return Plan(model_dir=model_dir, bank=bank, manifest=manifest)


def check_engine(config: ServeConfig) -> None:
    """What the routed layer would refuse only once the engine has started. Raises: ServeError."""
    from seta_runtime.config import UnsupportedEngine, check_ranks

    try:
        check_ranks(config.pipeline_parallel_size)
    except UnsupportedEngine as error:
        raise ServeError(f"the engine cannot run like this: {error}") from error


def _read_all(bank: Bank, manifest: Manifest) -> None:
    """Every object of the generation, verified: better now than after the engine has loaded. Raises: BankError."""
    bank.load_gate(manifest)
    for expert in manifest.experts:
        bank.load_expert(manifest, expert)


def check_installation() -> None:
    """The one supported vLLM is there, and its processes will find our plugin. Raises: ServeError."""
    from seta_runtime.config import UnsupportedEngine
    from seta_runtime.plugin import check_vllm_version

    try:
        check_vllm_version()
    except UnsupportedEngine as error:
        raise ServeError(str(error)) from error
    if not entry_points(group="vllm.general_plugins", name="seta"):
        raise ServeError("vLLM would not find this package's plugin: install the package (pip install -e .) first")
