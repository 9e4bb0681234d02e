"""The web page, in a real browser against a server that plays the API, and once against the real one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from avila_diffusion.server.settings import Settings

from .live import serving
from .page_mock import Mock, Running, create_mock, picture
from .page_visit import Visit, Watch, choose, mask_of, tab_to, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SLOW = 0.12
"""Seconds a step, where something is done while a picture is made."""


Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip("there is no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def mock() -> Mock:
    return Mock()


@pytest.fixture
def visit(browser: Browser, mock: Mock) -> Iterator[Open]:
    """Opens the page; in the end nothing may have gone wrong in it."""
    contexts = []
    watches = []
    with Running(create_mock(mock)) as url:

        def opened(refused: bool = False, ready: bool = True, **options: Any) -> Visit:
            context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 860}, **options})
            context.set_default_timeout(40000)
            contexts.append(context)
            tab = context.new_page()
            watch = Watch(url, refused)
            watches.append(watch)
            watch.follow(tab)
            tab.goto(url)
            if ready:
                tab.wait_for_selector("#model-line:not(:empty)", state="attached")
            return Visit(tab, mock, watch)

        yield opened
        for context in contexts:
            context.close()
    assert [line for watch in watches for line in watch.wrong] == []


def test_a_picture_is_made_and_previews_arrive(visit: Open) -> None:
    page = visit()
    page.mock.pace = SLOW
    page.generate()
    page.tab.wait_for_selector('#stage[data-state="busy"]')
    page.tab.wait_for_selector('#stage-image[src^="data:image/jpeg"]')
    page.tab.wait_for_selector('#queue-list img[src^="data:image/jpeg"]')
    assert re.search(r"Step \d+ of 20 · \d+ s left", page.tab.inner_text("#progress-words"))
    page.mock.pace = 0.005
    page.done()
    assert page.tab.get_attribute("#stage", "data-state") == "done"
    assert "/images/0.png" in (page.tab.get_attribute("#stage-image", "src") or "")
    request = page.mock.sent[0]["request"]
    assert request["prompt"] == "a hill at dawn"
    assert (request["width"], request["height"], request["steps"], request["seed"]) == (512, 512, 20, None)
    assert page.mock.sent[0]["model"] == "dreamshaper_8.safetensors"


def test_a_job_is_cancelled_finished_early_and_paused(visit: Open) -> None:
    page = visit()
    page.mock.pace = SLOW
    page.generate()
    page.tab.click('#queue-list button[aria-label="Pause"]')
    page.tab.wait_for_selector('.job[data-state="paused"]')
    page.tab.click('#queue-list button[aria-label="Go on"]')
    page.tab.wait_for_selector('.job[data-state="running"]')
    page.tab.click('#queue-list button[aria-label="Cancel"]')
    page.tab.wait_for_selector("#queue", state="hidden")
    assert page.mock.jobs["job1"]["state"] == "cancelled"
    page.generate()
    page.tab.click('#stage-buttons button:has-text("Finish early")')
    page.done()
    assert page.mock.jobs["job2"]["state"] == "done"


def test_a_reload_in_the_middle_goes_on(visit: Open) -> None:
    page = visit()
    page.mock.pace = SLOW
    page.generate("still here")
    page.tab.wait_for_selector('#stage-image[src^="data:image/jpeg"]')
    page.tab.reload()
    page.tab.wait_for_selector('#stage[data-state="busy"]')
    page.tab.wait_for_selector('#stage-image[src^="data:image/jpeg"]')
    assert page.tab.input_value("#f-prompt") == "still here"
    page.mock.pace = 0.005
    page.done()
    assert {client for client, _ in page.mock.streams} == {page.mock.jobs["job1"]["client"].partition("/")[2]}


def test_the_gallery_gives_settings_and_seeds_back(visit: Open) -> None:
    page = visit()
    page.mock.pace = 0.002
    page.tab.select_option("#f-sampler", "Euler a")
    page.tab.fill("#f-count", "3")
    page.tab.fill("#f-seed", "18446744073709551613")
    page.generate("three hills")
    page.done(3)
    assert [result["seed"] for result in page.mock.jobs["job1"]["results"]] == [2**64 - 3, 2**64 - 2, 2**64 - 1]
    page.tab.click("#reset")
    assert page.tab.input_value("#f-sampler") == "DPM++ 2M"
    page.tab.click("#gallery-grid li:nth-child(2) button")
    assert page.tab.inner_text("#viewer-place") == "2 of 3"
    page.tab.keyboard.press("ArrowRight")
    assert page.tab.inner_text("#viewer-place") == "3 of 3"
    assert "Sampler: Euler a" in (page.tab.text_content("#viewer-infotext") or "")
    page.tab.click('#viewer-actions button:has-text("Use these settings")')
    page.tab.wait_for_selector("#viewer", state="hidden")
    assert page.tab.input_value("#f-sampler") == "Euler a"
    assert page.tab.input_value("#f-count") == "1"
    assert page.tab.input_value("#f-seed") == "18446744073709551615"
    page.tab.click("#generate")
    page.done(4)
    assert page.mock.sent[1]["request"]["seed"] == 2**64 - 1


def test_pictures_are_deleted(visit: Open) -> None:
    page = visit()
    page.mock.pace = 0.002
    page.generate()
    page.done()
    page.tab.click("#gallery-grid button")
    page.tab.keyboard.press("Delete")
    page.tab.click("#confirm-yes")
    page.done(0)
    assert page.mock.jobs == {}
    page.tab.wait_for_selector("#viewer", state="hidden")


def test_a_painted_mask_is_sent(visit: Open) -> None:
    page = visit()
    page.mock.pace = 0.002
    choose(page)
    assert (page.tab.input_value("#f-width"), page.tab.input_value("#f-height")) == ("320", "240")
    page.tab.click("#fold-mask summary")
    page.tab.click("#mask-open")
    box = page.tab.locator("#mask-canvas").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5
    page.tab.mouse.move(x, y)
    page.tab.mouse.down()
    page.tab.mouse.move(x + box["width"] * 0.1, y, steps=4)
    page.tab.mouse.up()
    page.tab.click("#mask-done")
    page.tab.select_option("#f-masked_content", "noise")
    page.generate()
    page.done()
    mask = mask_of(page)
    assert mask.size == (320, 240)
    assert (mask.getpixel((90, 120)), mask.getpixel((250, 120)), mask.getpixel((90, 30))) == (255, 0, 0)
    assert page.mock.sent[-1]["request"]["masked_content"] == "noise"
    assert page.mock.sent[-1]["request"]["strength"] == 0.6


def test_a_mask_is_made_without_a_pointer(visit: Open) -> None:
    page = visit()
    page.mock.pace = 0.002
    choose(page)
    page.tab.click("#fold-mask summary")
    page.tab.focus("#mask-open")
    page.tab.keyboard.press("Enter")
    for name, value in (("left", "0"), ("upper", "0"), ("width", "160"), ("height", "240")):
        page.tab.fill(f"#box-{name}", value)
    page.tab.press("#box-add", "Enter")
    page.tab.press("#mask-invert", "Enter")
    page.tab.press("#mask-clear", "Enter")
    page.tab.press("#mask-undo", "Enter")
    page.tab.keyboard.press("Escape")
    assert page.focused() == "mask-open"
    page.generate()
    page.done()
    mask = mask_of(page)
    assert (mask.getpixel((80, 120)), mask.getpixel((240, 120))) == (0, 255)


def test_the_keyboard_alone_makes_a_picture(visit: Open) -> None:
    page = visit()
    page.mock.pace = 0.002
    tab_to(page, "skip", "Shift+Tab")
    page.tab.keyboard.press("Enter")
    tab_to(page, "f-prompt")
    page.tab.keyboard.type("a red hill")
    page.tab.keyboard.press("Control+ArrowLeft")
    page.tab.keyboard.press("Control+ArrowUp")
    assert page.tab.input_value("#f-prompt") == "a red (hill:1.1)"
    page.tab.keyboard.press("Control+ArrowDown")
    page.tab.keyboard.press("Control+ArrowDown")
    assert page.tab.input_value("#f-prompt") == "a red (hill:0.9)"
    tab_to(page, "generate")
    page.tab.keyboard.press("Enter")
    page.done()
    page.tab.keyboard.press("Control+Enter")
    page.done(2)
    tab_to(page, "tile")
    page.tab.keyboard.press("ArrowRight")
    page.tab.keyboard.press("Enter")
    page.tab.wait_for_selector("#viewer", state="visible")
    assert page.tab.inner_text("#viewer-place") == "2 of 2"
    page.tab.keyboard.press("Escape")
    page.tab.wait_for_selector("#viewer", state="hidden")
    assert page.focused() == "tile"


def test_both_languages(visit: Open) -> None:
    page = visit(locale="pt-BR")
    assert page.tab.inner_text("#generate span") == "Gerar"
    assert page.tab.get_attribute("html", "lang") == "pt-BR"
    page.tab.select_option("#language", "en")
    assert page.tab.inner_text("#generate span") == "Generate"
    page.tab.reload()
    assert page.tab.inner_text("#generate span") == "Generate"
    shown = page.tab.evaluate("document.body.innerText")
    assert not re.search(r"\b(field|hint|fold|choice|stage|mask)\.[a-z]", shown)


@pytest.mark.parametrize("language", ["en-US", "pt-BR"])
def test_a_narrow_screen_has_no_sideways_scroll(visit: Open, language: str) -> None:
    page = visit(viewport={"width": 320, "height": 640}, locale=language)
    page.mock.pace = 0.002
    choose(page)
    page.tab.click("#settings > summary")
    page.tab.fill("#f-count", "3")
    page.generate("a prompt_with_a_word_that_is_longer_than_the_screen_is_wide_and_does_not_break")
    page.done(3)
    page.tab.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.tab.evaluate(wide) <= 0
    for opener, dialog in (
        ("#mask-open", "mask"),
        ("#about-model", "report"),
        ("#help-button", "help"),
        ("#gallery-grid button", "viewer"),
    ):
        page.tab.click(opener)
        inside = f"(() => {{ const d = document.getElementById('{dialog}'); return d.scrollWidth - d.clientWidth; }})()"
        assert page.tab.evaluate(inside) <= 0, dialog
        page.tab.keyboard.press("Escape")


def test_html_in_prompts_is_text(visit: Open) -> None:
    page = visit()
    page.mock.pace = 0.03
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'><svg onload=alert(3)>"
    page.mock.checkpoints = (f"{evil}.safetensors",)
    page.generate(evil)
    page.done()
    page.tab.reload()
    page.done()
    assert page.tab.inner_text("#caption") == evil
    page.tab.click("#gallery-grid button")
    assert page.tab.inner_text("#viewer-prompt") == evil
    assert page.tab.query_selector("#viewer script, #viewer svg[onload], [onerror]") is None


def test_a_refusal_stands_at_its_field(visit: Open) -> None:
    page = visit(refused=True)
    page.mock.refuse = (422, {"kind": "RequestError", "message": "eta is 20; it must be from 0 to 10", "field": "eta"})
    page.generate()
    page.tab.wait_for_selector("#f-eta[aria-invalid=true]")
    assert page.focused() == "f-eta"
    assert page.tab.inner_text("#e-eta") == page.tab.inner_text("#alert-text") == "eta is 20; it must be from 0 to 10"
    page.tab.fill("#f-eta", "1")
    assert page.tab.inner_text("#e-eta") == ""
    page.tab.fill("#f-steps", "501")
    page.tab.click("#generate")
    assert page.tab.inner_text("#e-steps") == "give a number from 1 to 500"
    assert len(page.mock.sent) == 0


def test_the_token_is_asked_for(visit: Open, mock: Mock) -> None:
    mock.token = "open sesame"
    page = visit(refused=True, ready=False)
    page.tab.fill("#signin-token", "wrong")
    page.tab.press("#signin-token", "Enter")
    page.tab.wait_for_selector("#signin-error:not(:empty)")
    page.tab.fill("#signin-token", "open sesame")
    page.tab.press("#signin-token", "Enter")
    page.tab.wait_for_selector("#signin", state="hidden")
    page.generate()
    page.done()


def test_generate_stands_still_while_the_lists_arrive(visit: Open, mock: Mock) -> None:
    """A press whose release finds something else under it is no click."""
    mock.token = "open sesame"
    page = visit(refused=True, ready=False)
    place = "JSON.stringify(document.getElementById('generate').getBoundingClientRect())"
    page.tab.wait_for_selector("#signin-token")
    before = page.tab.evaluate(place)
    page.tab.fill("#signin-token", "open sesame")
    page.tab.press("#signin-token", "Enter")
    page.tab.wait_for_selector("#model-line:not(:empty)")
    page.tab.wait_for_selector("#styles-list label")
    assert page.tab.evaluate(place) == before


def test_a_server_that_goes_away_is_waited_for(browser: Browser) -> None:
    mock = Mock(pace=0.002)
    context = browser.new_context(locale="en-US")
    context.set_default_timeout(40000)
    tab = context.new_page()
    with Running(create_mock(mock)) as url:
        tab.goto(url)
        tab.wait_for_selector("#model-line:not(:empty)")
    tab.fill("#f-prompt", "are you there")
    tab.click("#generate")
    tab.wait_for_selector("#gone.shown")
    assert tab.inner_text("#alert-text") == "The server does not answer."
    with Running(create_mock(mock), int(url.rpartition(":")[2])):
        tab.wait_for_selector("#gone:not(.shown)", state="attached")
        assert tab.input_value("#f-prompt") == "are you there"
        tab.click("#generate")
        tab.wait_for_selector("#gallery-grid img")
        context.close()


def test_a_picture_tells_its_settings(visit: Open) -> None:
    page = visit()
    numbers = "Steps: 31, Sampler: Euler a, Schedule type: Karras, CFG scale: 5.5, Seed: 77, Size: 384x512"
    text = f"a lighthouse\nNegative prompt: fog\n{numbers}, Model: dreamshaper_8"
    data = picture(77, 96, 128, text)
    page.tab.set_input_files("#read-file", {"name": "old.png", "mimeType": "image/png", "buffer": data})
    page.tab.wait_for_selector("#metadata", state="visible")
    assert "a lighthouse" in page.tab.inner_text("#metadata-values")
    page.tab.click("#metadata-use")
    page.tab.wait_for_selector("#metadata", state="hidden")
    wanted = {
        "prompt": "a lighthouse",
        "negative_prompt": "fog",
        "steps": "31",
        "sampler": "Euler a",
        "seed": "77",
        "width": "384",
    }
    assert {name: page.tab.input_value(f"#f-{name}") for name in wanted} == wanted
    page.tab.set_input_files("#read-file", {"name": "old.png", "mimeType": "image/png", "buffer": data})
    page.tab.click("#metadata-start")
    page.tab.wait_for_selector("#source", state="visible")


def test_the_first_start_says_what_draws(visit: Open, mock: Mock) -> None:
    mock.checkpoints = ()
    page = visit()
    assert "small model in the box" in page.tab.inner_text("#first-start")
    page.tab.click("#first-rescan")
    page.tab.wait_for_selector("#first-start", state="hidden")


def test_the_model_brings_its_defaults(visit: Open) -> None:
    page = visit()
    page.tab.fill("#f-steps", "33")
    page.tab.select_option("#f-model", "xl/juggernaut.safetensors")
    until(page.tab, "document.getElementById('f-width').value === '1024'")
    assert page.tab.input_value("#f-guidance_scale") == "5.5"
    assert page.tab.input_value("#f-steps") == "33"  # which the person chose
    page.tab.click("#about-model")
    assert "UNet: 686 tensors" in page.tab.inner_text("#report-lines")


def test_a_style_is_merged_in(visit: Open) -> None:
    page = visit()
    page.mock.pace = 0.002
    page.tab.click('#styles-list label:has-text("Ink")')
    page.tab.click('#styles-list label:has-text("Cinematic")')
    page.generate("a hill")
    page.done()
    request = page.mock.sent[0]["request"]
    assert (request["prompt"], request["negative_prompt"]) == (
        "ink drawing of a hill, cinematic light, film grain",
        "photo",
    )


def test_the_real_server(browser: Browser, make_settings: Callable[..., Settings]) -> None:
    """From the first look to a deleted picture, with a tiny model, behind the real guard and its policy."""
    with serving(make_settings(model="tiny")) as url:
        context = browser.new_context(locale="en-US")
        context.set_default_timeout(20000)
        tab = context.new_page()
        watch = Watch(url)
        watch.follow(tab)
        tab.goto(url)
        tab.wait_for_selector("#model-line:not(:empty)", state="attached")
        assert tab.input_value("#f-model") == "tiny.safetensors"
        assert re.search(r"Stable Diffusion 1 · \d+ px", tab.inner_text("#model-line"))
        for name, value in (("width", "64"), ("height", "64"), ("steps", "6"), ("count", "2"), ("seed", "7")):
            tab.fill(f"#f-{name}", value)
        tab.fill("#f-prompt", "a <b>hill</b>")
        tab.click("#generate")
        until(tab, "document.querySelectorAll('#gallery-grid img').length === 2")
        until(tab, "document.getElementById('stage-image').naturalWidth === 64")
        tab.click("#gallery-grid li:nth-child(2) button")
        assert "Seed: 8" in (tab.text_content("#viewer-infotext") or "")
        data = context.request.get(url + (tab.get_attribute("#viewer-image", "src") or "")).body()
        tab.keyboard.press("Escape")
        tab.set_input_files("#read-file", {"name": "hill.png", "mimeType": "image/png", "buffer": data})
        tab.click("#metadata-use")
        tab.wait_for_selector("#metadata", state="hidden")
        assert tab.input_value("#f-seed") == "8"
        tab.click("#gallery-grid button")
        tab.keyboard.press("Delete")
        tab.click("#confirm-yes")
        tab.wait_for_selector("#gallery-grid img", state="detached")
        context.close()
    assert watch.wrong == []
