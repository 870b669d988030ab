"""The report in a browser, from disk, as a reader meets it."""

from __future__ import annotations

import shutil

import pytest

from command_line import igrpo
from hostile_run import make_hostile

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

SIZES = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def report(finished_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    runs = make_hostile(finished_run, folder / "hostile"), finished_run
    result = igrpo("report", *runs, "--output", folder / "report.html")
    assert result.code == 0, result.stderr
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, report):
    """Opens the report at a size; afterwards nothing may have gone wrong or been asked for."""
    complaints, contexts = [], []

    def open_report(size="desk", **settings):
        context = browser.new_context(viewport=SIZES[size], **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url != report.as_uri() else None)
        page.goto(report.as_uri())
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert complaints == []


def shown(page) -> int:
    return page.locator(".story:visible").count()


def test_the_plots_are_there_and_nothing_else_ran(opened):
    page = opened()
    assert page.title() == "hostile, finished · igrpo report"
    assert page.locator("#accuracy .chart:visible").count() == 1
    assert page.locator(".chart:visible").count() >= 10
    assert all(box["height"] > 150 for box in (each.bounding_box() for each in page.locator(".chart:visible").all()))
    assert page.locator("body").evaluate("body => getComputedStyle(body).display") == "block"


def test_the_axis_can_be_chosen_with_and_without_script(opened):
    for has_script in (True, False):
        page = opened(java_script_enabled=has_script)
        assert page.locator("#reward .over.iteration").is_visible()
        page.get_by_label("rollouts sampled before").check()
        assert page.locator("#reward .over.rollouts").is_visible()
        assert not page.locator("#reward .over.iteration").is_visible()


def test_problems_are_filtered_and_read_by_keyboard(opened):
    page = opened()
    every = shown(page)
    page.locator("select[name=kind]").focus()
    page.keyboard.type("broken")
    page.keyboard.press("Enter")
    broken = shown(page)
    assert 0 < broken < every
    assert page.locator(".filters output").inner_text() == f"{broken} of {every}"
    page.locator("nav a").first.focus()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    story = page.locator(".story[open]")
    assert story.count() == 1
    assert "|broken|" in story.get_attribute("data-kind")
    assert story.locator(".completion").first.is_visible()
    assert story.locator(".badge", has_text="selected").count() == 1
    page.locator("select[name=verdict]").select_option("correct")
    assert "|correct|" in page.locator(".story:visible").first.get_attribute("data-verdict")


def test_values_are_read_under_the_pointer(opened):
    page = opened()
    page.locator("#accuracy .over.iteration .chart").hover()
    assert "finished, without draft (drafts): " in page.locator(".reading").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_only(opened, scheme):
    page = opened("phone", color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(opened, scheme):
    page = opened(color_scheme=scheme)
    colours = page.evaluate(
        "['--paper', '--ink', '--soft', '--link', '--good', '--bad', ...Array.from({length: 9}, (_, i) => `--c${i}`)]"
        ".map(name => getComputedStyle(document.documentElement).getPropertyValue(name).trim())"
    )
    ground, *others = map(luminance, colours)
    for colour, other in zip(colours[1:], others, strict=True):
        contrast = (max(ground, other) + 0.05) / (min(ground, other) + 0.05)
        assert contrast >= 4.5, f"{colour} on {colours[0]}: {contrast:.2f}"


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
