"""What can be said before the engine starts: is this a bank, which generation serves, does it fit this base model?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters.bank import Bank, BankError, Manifest, check_base

from .config import ServeConfig, ServeError

_MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


@dataclass(frozen=True)
class Plan:
    """What will be served: a model on local disk and a bank whose current generation belongs to it."""

    model_dir: Path
    bank: Bank
    manifest: Manifest


def check(config: ServeConfig, say: Callable[[str], None]) -> Plan:
    """Raises: ServeError if the bank, its current generation or the base model will not do."""
    from adapters.base_model import fingerprint

    try:
        bank = Bank.open(config.bank)
        manifest = bank.manifest()
        model_dir = local_model(config.model, say)
        check_base(manifest, fingerprint(model_dir))
    except BankError as error:
        raise ServeError(f"bank {config.bank.name}: {error}") from error
    return Plan(model_dir=model_dir, bank=bank, manifest=manifest)


def local_model(model: str, say: Callable[[str], None]) -> Path:
    """The model's directory; a Hub id is downloaded, or found in the Hub's cache. Raises: ServeError."""
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ServeError(f"--model: {model} has no config.json; give the directory of a Hugging Face model")
        return path.resolve()
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ServeError(f"--model: there is no directory {model!r}")
    return _from_hub(model, say)


def _from_hub(model: str, say: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    say(f"looking for {model} on the Hugging Face Hub (a first download can take long)")
    try:
        return Path(snapshot_download(model, allow_patterns=_MODEL_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ServeError(
            f"--model: {model!r} is no directory and could not be had from the Hub ({reason}); "
            "check the id, the network, and HF_TOKEN for a gated model"
        ) from error
