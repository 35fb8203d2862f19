"""What a person does on the console's pages."""

from playwright.sync_api import Locator, Page, expect

SMART_HOME = "Which smart-home intent does this command express?\nmute stereo"
FOOD = "Which food group does this description belong to?\nChicken breast tenders, breaded, uncooked"
FRANCE = "What is the capital of France?"


def ask(page: Page, question: str, until_told: bool = True) -> Locator:
    """Type a question and press Enter; the turn, by default once its answer is complete and explained."""
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    turn = page.locator(".turn").last
    if until_told:
        expect(turn).to_have_attribute("aria-busy", "false")
    return turn


def experts(place: Locator) -> list[tuple[str, str]]:
    """(text, leading expert) of every token in a part of the page."""
    found: list[tuple[str, str]] = place.locator(".token").evaluate_all(
        "tokens => tokens.map(one => [one.textContent, one.dataset.expert])"
    )
    return [(text, expert) for text, expert in found]


def background(place: Locator) -> str:
    return str(place.evaluate("one => getComputedStyle(one).backgroundColor"))


def serving(page: Page) -> str:
    """What the page says serves."""
    return page.locator(".state").inner_text()


def fits(page: Page) -> bool:
    """Nothing has to be scrolled sideways."""
    return bool(
        page.evaluate("document.documentElement.scrollWidth <= innerWidth && document.body.scrollWidth <= innerWidth")
    )
