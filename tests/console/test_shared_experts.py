"""How the bank's picture tells shared experts from unique ones, on a bank that has both, in light and dark."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Locator, expect

from adapters.bank import Bank
from adapters.split_on_share import shared_id
from tests.console.conftest import Open, Stage
from tests.server.process import free_port

LEAST_CONTRAST = 3.0
"""What WCAG 2.2 asks of graphics (success criterion 1.4.11)."""
Rgb = tuple[float, float, float]


@pytest.fixture(scope="module")
def sharing(demo_bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The demo bank with one more generation: two experts that tasks share. Only what the picture shows is made up."""
    root = shutil.copytree(demo_bank, tmp_path_factory.mktemp("sharing") / "bank")
    add_shared_experts(Bank.open(root))
    running = Stage(root, free_port(), free_port(), ())
    running.start()
    yield running
    running.kill()


def add_shared_experts(bank: Bank) -> None:
    manifest = bank.manifest()
    names = [task.name for task in manifest.tasks]
    pairs = [names[:2], names[1:]]
    model = manifest.experts[0].model_dump()
    shared = [model | {"id": shared_id(pair), "kind": "shared", "tasks": pair} for pair in pairs]
    rows = [
        [*row, *(int(name in pair) for pair in pairs)] for name, row in zip(names, manifest.membership, strict=True)
    ]
    changes = {
        "generation": manifest.generation + 1,
        "parent": manifest.generation,
        "experts": [*(expert.model_dump() for expert in manifest.experts), *shared],
        "membership": rows,
    }
    bank.publish(type(manifest).model_validate(manifest.model_dump() | changes))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shared_experts_are_striped_and_kinds_have_no_experts_colour(
    open_page: Open, sharing: Stage, scheme: Literal["light", "dark"]
) -> None:
    page = open_page(sharing.url, path="/console#bank", color_scheme=scheme)
    expect(page.locator(".growth li.serving strong")).to_have_text("5")
    for place, num_shared in ((".cell.filled", 5), (".size", 2), (".swatch:not(.serving)", 1)):
        marks = page.locator(place)
        assert striped(marks) == sorted(["unique"] * (marks.count() - num_shared) + ["shared *"] * num_shared)
    of_experts = fills(page.locator(".cell.filled"))
    of_kinds = fills(page.locator(".swatch:not(.serving)")) | fills(page.locator(".growth .stack span"))
    assert len(of_experts) == 6 and len(of_kinds) == 1 and not of_experts & of_kinds
    grounds = {rgb(page.locator("body"), "--ground"), rgb(page.locator("body"), "--panel")}
    for fill in of_experts | of_kinds | of_every_hue(page.locator(".cell.filled").first):
        assert min(contrast(fill, ground) for ground in grounds) >= LEAST_CONTRAST, (fill, grounds)


def striped(marks: Locator) -> list[str]:
    """The kind of each, with a star if it has stripes."""
    kinds: list[str] = marks.evaluate_all(
        """marks => marks.map((one) => {
          const kind = ["unique", "shared"].find((name) => one.classList.contains(name));
          return kind + (getComputedStyle(one).backgroundImage === "none" ? "" : " *");
        })"""
    )
    return sorted(kinds)


def fills(marks: Locator) -> set[Rgb]:
    return {rgb(marks.nth(number), "--fill") for number in range(marks.count())}


def of_every_hue(mark: Locator) -> set[Rgb]:
    """An expert may get any (server/page/experts.js)."""
    found = set()
    for hue in range(0, 360, 10):
        mark.evaluate("(one, hue) => one.style.setProperty('--hue', hue)", hue)
        found.add(rgb(mark, "--fill"))
    return found


def rgb(place: Locator, variable: str) -> Rgb:
    """The colour that a style sheet's variable is on the screen here, 0 to 255 each."""
    found = place.evaluate(
        """(one, variable) => {
          const probe = one.appendChild(document.createElement("i"));
          probe.style.backgroundColor = `var(${variable})`;
          const canvas = new OffscreenCanvas(1, 1).getContext("2d");
          canvas.fillStyle = getComputedStyle(probe).backgroundColor;
          probe.remove();
          canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data];
        }""",
        variable,
    )
    red, green, blue, alpha = found
    assert alpha == 255, f"{variable} is not a colour here"
    return red, green, blue


def contrast(one: Rgb, other: Rgb) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def luminance(colour: Rgb) -> float:
    """Relative luminance of an sRGB colour, as WCAG defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
