"""`seta learn --activate`: what was learned goes live on a running server.

Before training: is the server there, and does it serve the generation that the training will build on? After it: the
new generation is sent if the server's bank lacks it, then activated in place of the one that was seen before. Only then
does it become the local bank's CURRENT.
"""

from __future__ import annotations

from pathlib import Path

from adapters.admin_client import AdminClient, AdminError
from adapters.bank import Bank, Manifest


def check_server(client: AdminClient, bank_dir: Path) -> Manifest:
    """The generation that both the bank and the server have in service. Raises: AdminError, BankError."""
    manifest = Bank.open(bank_dir).manifest()
    answer = client.generations()
    serving = next(one for one in answer["generations"] if one["generation"] == answer["serving"])
    if serving["manifest_sha256"] != manifest.digest:
        raise AdminError(
            f"the server serves generation {serving['generation']}, the bank {bank_dir.name!r} has generation "
            f"{manifest.generation} in service, and they are not the same; activate the bank's on the server (seta "
            "generations upload, activate), or go back to the server's in the bank (seta bank use)"
        )
    return manifest


def go_live(client: AdminClient, bank_dir: Path, manifest: Manifest, before: Manifest) -> float:
    """Send and activate a published generation; the seconds that activating took.

    Raises: AdminError; the server then serves what it served, and CURRENT says so.
    """
    bank, number = Bank.open(bank_dir), manifest.generation
    try:
        client.upload(bank, manifest)
        seconds = float(client.activate(number, expected=before.generation)["seconds"])
    except AdminError as error:
        remedy = f"seta generations upload --bank {bank_dir} --generation {number}; seta generations activate {number}"
        message = f"generation {number} is published but not live: {error}; later: {remedy}"
        raise AdminError(message, error.status, error.code, error.details) from None
    if bank.current() != number:  # the server has a bank of its own
        bank.set_current(number)
    return seconds


def before_and_after(before: Manifest, after: Manifest) -> list[tuple[str, float | None, float | None]]:
    """Each task's accuracy in percent in two generations; None where it was not measured."""
    old, new = _accuracies(before), _accuracies(after)
    return [(task.name, old.get(task.name), new.get(task.name)) for task in after.tasks]


def _accuracies(manifest: Manifest) -> dict[str, float]:
    """Of every task, where they were all measured; else of those that this generation learned."""
    names = [task.name for task in manifest.tasks]
    if manifest.accuracy_matrix:
        return dict(zip(names, manifest.accuracy_matrix[-1], strict=True))
    learned = (task for task in manifest.tasks if task.generation == manifest.generation)
    return {task.name: task.metrics["accuracy"] for task in learned if "accuracy" in task.metrics}
