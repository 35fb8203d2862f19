"""The bank's picture and the live charts in a real browser, and the page's arithmetic against a reference."""

import math
import random

import pytest
from playwright.sync_api import Page, expect
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from adapters.admin_client import AdminClient
from adapters.bank import Bank
from tests.console.conftest import ADMIN_KEY, KEY, Open, Stage
from tests.console.pages import FOOD, FRANCE, ask


def test_the_picture_is_the_manifests_membership(open_page: Open, stage: Stage) -> None:
    page = open_page(stage.url, KEY, path="/console#bank")
    manifest = Bank.open(stage.bank).manifest()
    cells = page.locator(".matrix .cell")
    expect(cells).to_have_count(len(manifest.tasks) * len(manifest.experts))
    filled = cells.evaluate_all("cells => cells.map(one => Number(one.classList.contains('filled')))")
    assert filled == [bit for row in manifest.membership for bit in row]
    scores = page.locator(".accuracy .score").all_inner_texts()
    assert scores == [f"{value:.1f}" for row in manifest.accuracy_matrix for value in row]
    columns = page.locator(".growth li")
    expect(columns).to_have_count(len(Bank.open(stage.bank).generations()))
    expect(page.locator(".growth li.serving strong")).to_have_text(str(manifest.generation))


def test_the_charts_show_what_happens(open_page: Open, stage: Stage) -> None:
    """Also on the admin page, which asks its own listener."""
    chat = open_page(stage.url, KEY)
    pages = [
        open_page(url, key, path="/console#live", viewport={"width": 1200, "height": 1400})
        for url, key in ((stage.url, KEY), (stage.admin_url, ADMIN_KEY))
    ]
    for page in pages:
        expect(page.locator(".chart canvas")).to_have_count(6)
    for question in (FOOD, FRANCE, FOOD):
        ask(chat, question)
    admin = AdminClient(stage.admin_url, ADMIN_KEY)
    admin.activate(3)
    try:
        for page in pages:
            tile = page.locator(".tiles .panel")
            expect(tile.filter(has_text="generation")).to_contain_text("3")
            expect(tile.filter(has_text="first token, 95 %")).to_contain_text("ms")
            tokens = page.locator(".chart", has_text="Tokens by expert")
            expect(tokens.locator(".u-legend")).to_contain_text("foods.unique")
            generations = page.locator("table.list tbody tr")
            expect(generations.filter(has=page.get_by_text("4", exact=True)).first).to_contain_text("ms")
    finally:
        admin.activate(4)


MODULES = """async ([module, name, args]) => {
  const found = await import(new URL(`console/${module}`, document.baseURI));
  return found[name](...args);
}"""


@pytest.fixture
def page(open_page: Open, stage: Stage) -> Page:
    return open_page(stage.url, KEY)


def test_quantiles_are_prometheus_own(page: Page) -> None:
    """histogram_quantile: linear within the bucket that holds the quantile."""
    bounds = (0.001, 0.01, 0.1, 1.0, 10.0)
    for seed in range(5):
        rng = random.Random(seed)
        values = [math.exp(rng.uniform(-7, 3)) for _ in range(rng.randrange(1, 60))]
        registry = CollectorRegistry()
        histogram = Histogram("seta_x_seconds", "x", ["generation"], buckets=bounds, registry=registry)
        for value in values:
            histogram.labels(str(rng.randrange(3))).observe(value)
        text = generate_latest(registry).decode()
        for share in (0.5, 0.95):
            found = page.evaluate(
                """async ([text, share]) => {
                  const module = await import(new URL("console/prometheus.js", document.baseURI));
                  const { buckets, parse, quantile, samples } = module;
                  return quantile(buckets(samples(parse(text), "seta_x_seconds_bucket")), share);
                }""",
                [text, share],
            )
            assert found == pytest.approx(reference_quantile(bounds, values, share))


def reference_quantile(bounds: tuple[float, ...], values: list[float], share: float) -> float:
    rank, lower, below = share * len(values), 0.0, 0
    for bound in bounds:
        count = sum(value <= bound for value in values)
        if count >= rank:
            return lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower


def test_what_rises_between_two_scrapes(page: Page) -> None:
    """A generation that left takes nothing along; one that is new, or a server that began again, counts from zero."""
    before = 'a{g="1"} 10\na{g="2"} 7\na{g="3"} 50\n'
    now = 'a{g="2"} 9\na{g="3"} 4\na{g="4"} 5\n'
    found = page.evaluate(
        """async ([now, before]) => {
          const { parse, risen } = await import(new URL("console/prometheus.js", document.baseURI));
          return risen(parse(now), parse(before), "a").map(({ labels, value }) => [labels.g, value]);
        }""",
        [now, before],
    )
    assert found == [["2", 2], ["3", 4], ["4", 5]]


def test_labels_are_unescaped(page: Page) -> None:
    found = page.evaluate(
        """async () => {
          const { parse, samples } = await import(new URL("console/prometheus.js", document.baseURI));
          return samples(parse('# HELP a b\\na{x="1,\\\\"}\\\\n",le="+Inf"} 2.5e3\\nb 1\\n'), "a");
        }"""
    )
    assert found == [{"labels": {"x": '1,"}\n', "le": "+Inf"}, "value": 2500}]


@pytest.mark.parametrize("seed", range(5))
def test_tokens_and_messages_are_aligned_whatever_the_pieces(page: Page, seed: int) -> None:
    """Cut a prompt at random places: what is found spells the question, each piece with a token that holds it."""
    rng = random.Random(seed)
    question, answer = "Größe der Datei?\n\nNoch 1×", "Siebzehn 🙂 Äpfel"
    turn = f"<|user|>\n{question}\n<|assistant|>"
    parts = (
        ("prompt", "before", turn),
        ("prompt", "now", turn),
        ("answer", "now", answer + "<|end|>"),
    )
    tokens = [{"text": text, "part": part, "id": when} for part, when, whole in parts for text in cut(rng, whole)]
    for name, part, wanted in (("questionIn", "prompt", question), ("answerIn", "answer", answer)):
        pieces = page.evaluate(MODULES, ["align.js", name, [tokens, wanted]])
        assert "".join(piece["text"] for piece in pieces) == wanted
        for piece in pieces:
            assert piece["text"] in piece["token"]["text"]
            assert (piece["token"]["part"], piece["token"]["id"]) == (part, "now")
    assert page.evaluate(MODULES, ["align.js", "questionIn", [tokens, "never asked"]]) is None


def cut(rng: random.Random, text: str) -> list[str]:
    pieces = []
    while text:
        size = rng.randrange(1, 7)
        pieces.append(text[:size])
        text = text[size:]
    return pieces
