"""The chat page in a real browser: answers as they come, colours, keys, and a server that goes away in the middle."""

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.console.conftest import ADMIN_KEY, KEY, Open, Stage
from tests.console.pages import FOOD, FRANCE, SMART_HOME, ask, background, experts, fits, serving

TRANSPARENT = "rgba(0, 0, 0, 0)"


def ask_for_stream(page: Page, stream: str) -> Locator:
    """The turn of a question that is answered with this stream, whatever the server would say."""
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
    return ask(page, FRANCE, until_told=False)


def test_an_answer_streams_and_then_takes_its_colours(open_page: Open, stage: Stage) -> None:
    page = open_page(stage.url, KEY)
    turn = ask(page, "Tell me a long story", until_told=False)
    expect(turn.locator(".answer")).to_contain_text("capital of France")
    expect(turn).to_have_attribute("aria-busy", "true")  # there is text, and there is more to come
    assert turn.locator(".token").count() == 0
    page.keyboard.press("Escape")
    expect(turn.locator(".facts")).to_contain_text("stopped")

    turn = ask(page, SMART_HOME)
    expect(turn.locator(".answer")).to_have_text("HassMediaPlayerMute")
    assert {expert for _, expert in experts(turn.locator(".answer"))} == {"smart_home.unique"}
    question = experts(turn.locator(".question"))
    assert "".join(text for text, _ in question) == SMART_HOME
    assert question[0] == ("Which", "base model") and question[-1] == (" stereo", "smart_home.unique")
    expect(turn.locator(".facts")).to_contain_text("smart_home.unique 100 %")
    expect(turn.locator(".facts")).to_contain_text("generation 4")


def test_colours_are_the_experts_and_the_base_model_has_none(open_page: Open, stage: Stage) -> None:
    page = open_page(stage.url, KEY)
    colours = [background(ask(page, one).locator(".answer .token").first) for one in (SMART_HOME, FOOD, FRANCE)]
    assert len(set(colours)) == 3 and colours[2] == TRANSPARENT
    again = ask(page, SMART_HOME)
    assert background(again.locator(".answer .token").first) == colours[0]


def test_the_weights_by_mouse_by_tap_and_by_keyboard(open_page: Open, stage: Stage) -> None:
    page = open_page(stage.url, KEY, has_touch=True)
    turn = ask(page, FOOD)
    box = page.locator(".weights")
    turn.locator(".answer .token").first.hover()
    expect(box).to_contain_text("foods.unique")
    expect(box).to_contain_text("100 %")
    expect(box).to_contain_text("task: foods 100 %")
    page.mouse.move(0, 0)
    expect(box).to_have_count(0)
    turn.locator(".question .token").first.tap()
    expect(box).to_contain_text("base model")
    turn.locator(".question .tokens").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    second, _ = experts(turn.locator(".question"))[1]
    expect(turn.locator(".question .token.at")).to_have_text(second)
    page.keyboard.press("Escape")
    expect(box).to_have_count(0)


def test_one_experts_tokens_can_be_picked_out(open_page: Open, stage: Stage) -> None:
    page = open_page(stage.url, KEY)
    turn = ask(page, SMART_HOME)
    page.locator(".legend").get_by_text("smart_home.unique").click()
    others = [expert for _, expert in experts(turn.locator(".question")) if expert != "smart_home.unique"]
    assert turn.locator(".question .token.dim").count() == len(others) > 0
    assert turn.locator(".answer .token.dim").count() == 0


def test_all_tokens_shows_the_template_too(open_page: Open, stage: Stage) -> None:
    page = open_page(stage.url, KEY)
    turn = ask(page, SMART_HOME)
    turn.get_by_role("button", name="all tokens").click()
    assert experts(turn)[0] == ("<|im_start|>", "base model")


def test_route_asks_for_no_answer(open_page: Open, stage: Stage) -> None:
    page = open_page(stage.url, KEY)
    page.get_by_label("Your question").fill(FOOD)
    page.keyboard.press("Alt+Enter")
    turn = page.locator(".turn").last
    expect(turn.locator(".facts")).to_contain_text("would go to foods.unique 100 %")
    assert turn.locator(".answer").count() == 0
    assert experts(turn.locator(".question"))[-1][1] == "foods.unique"


def test_text_is_text_whatever_it_says(open_page: Open, stage: Stage) -> None:
    page = open_page(stage.url, KEY)
    turn = ask(page, "hostile <b>bold</b> <img src=x onerror=\"document.title='taken'\">")
    expect(turn.locator(".answer")).to_contain_text("<script>")
    assert turn.locator("img, script, b").count() == 0
    assert page.title() == "SETA console"


class TestKeys:
    def test_a_wrong_key_is_said_to_be_wrong_and_another_can_be_given(self, open_page: Open, stage: Stage) -> None:
        page = open_page(stage.url)
        field = page.locator("dialog input")
        field.fill("seta-wrong")
        page.keyboard.press("Enter")
        expect(page.locator("dialog [role=alert]")).to_contain_text("not known to this server")
        field.fill(ADMIN_KEY)
        page.keyboard.press("Enter")
        expect(page.locator("dialog [role=alert]")).to_contain_text("other listener")
        field.fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("dialog")).to_have_count(0)
        expect(ask(page, SMART_HOME).locator(".answer")).to_have_text("HassMediaPlayerMute")

    def test_it_is_kept_in_this_tab_only(self, open_page: Open, stage: Stage) -> None:
        page = open_page(stage.url)
        page.locator("dialog input").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Forget key")).to_be_visible()
        kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, location.href, document.body.innerHTML]")
        assert not [one for one in kept if KEY in one]
        assert page.evaluate("sessionStorage.getItem('seta.key')") == KEY
        another = page.context.new_page()
        another.goto(stage.url + "/console")
        expect(another.locator("dialog input")).to_be_visible()
        page.get_by_role("button", name="Forget key").click()
        expect(page.locator("dialog input")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0


class TestServerThatGoes:
    def test_in_the_middle_of_an_answer(self, open_page: Open, stage: Stage) -> None:
        page = open_page(stage.url, KEY)
        ask(page, SMART_HOME)
        turn = ask(page, "Tell me a long story", until_told=False)
        expect(turn.locator(".answer")).to_contain_text("Paris")
        stage.kill()
        try:
            expect(turn.locator("[role=alert]")).to_contain_text(
                "The connection was lost before the answer was complete"
            )
            expect(turn.locator(".answer")).to_contain_text("Paris")  # what came is kept
            expect(page.locator(".state")).to_have_text("not reachable")
            turn.get_by_role("button", name="Ask again").click()
            expect(page.locator(".turn").last.locator("[role=alert]")).to_contain_text("does not answer")
        finally:
            stage.start()
        expect(page.locator(".state")).to_have_text("generation 4")
        page.get_by_role("button", name="Ask again").click()
        expect(page.locator(".turn").last.locator(".answer")).to_contain_text(
            "two million people live there. The capital"
        )
        assert page.locator(".turn").count() == 2, "the question that failed was asked again, not twice"
        assert serving(page) == "generation 4"

    def test_an_answer_that_just_ends_is_not_taken_for_whole(self, open_page: Open, stage: Stage) -> None:
        """As through a proxy that closes the stream in good order when its server has gone."""
        page = open_page(stage.url, KEY)
        event = 'data: {"choices": [{"delta": {"content": "Par"}}]}\n\n'
        turn = ask_for_stream(page, event)
        expect(turn.locator("[role=alert]")).to_contain_text("connection was lost")
        expect(turn.locator(".answer")).to_have_text("Par")

    def test_an_error_inside_the_stream_is_shown(self, open_page: Open, stage: Stage) -> None:
        page = open_page(stage.url, KEY)
        error = 'data: {"error": {"message": "The server is stopping", "code": "stopping"}}\n\n'
        turn = ask_for_stream(page, error)
        expect(turn.locator("[role=alert]")).to_contain_text("The server is stopping stopping")


class TestLooks:
    def test_dark_and_light_follow_the_system_until_switched(self, open_page: Open, stage: Stage) -> None:
        page = open_page(stage.url, KEY, color_scheme="dark")
        body = page.locator("body")
        dark = background(body)
        page.emulate_media(color_scheme="light")
        light = background(body)
        assert dark != light
        switch = page.get_by_role("button", name=re.compile("Theme"))
        switch.click()
        switch.click()
        assert background(body) == dark
        page.reload()
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        assert background(body) == dark
        switch.click()
        assert background(body) == light

    @pytest.mark.parametrize("view", ["chat", "bank", "live"])
    def test_a_phone_need_not_scroll_sideways(self, open_page: Open, stage: Stage, view: str) -> None:
        page = open_page(stage.url, KEY, path=f"/console#{view}", viewport={"width": 360, "height": 700})
        if view == "chat":
            ask(page, FOOD)
        expect(page.locator(f"#view-{view} .page, #view-{view} .turn").first).to_be_visible()
        assert fits(page)

    def test_tabs_by_keyboard(self, open_page: Open, stage: Stage) -> None:
        page = open_page(stage.url, KEY)
        page.get_by_role("tab", name="Chat").focus()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name="Bank")).to_have_attribute("aria-selected", "true")
        expect(page.locator("#view-bank")).to_be_visible()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        expect(page.get_by_role("tab", name="Live")).to_be_focused()

    def test_shift_enter_is_a_new_line(self, open_page: Open, stage: Stage) -> None:
        page = open_page(stage.url, KEY)
        page.get_by_label("Your question").press_sequentially("one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        expect(page.get_by_label("Your question")).to_have_value("one\ntwo")
        assert page.locator(".turn").count() == 0
