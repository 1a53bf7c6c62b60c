"""The pages of `sftpipe report`, in a real headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runs.report.test_page import HOSTILE
from sftpipe.runs.report.compare import write_comparison
from sftpipe.runs.report.page import write_page
from sftpipe.sweeps.page import write_page as write_sweep_page
from sftpipe.sweeps.table import read_table
from support.browser import CONTRASTS, chromium, opened, overflow
from support.run_folders import EVALUATION, LOG, PREFLIGHT, SAMPLES, write_run
from sweeps.test_page import write_sweep

pytestmark = pytest.mark.slow  # a browser of its own

RIGHT_TO_LEFT = (
    "\u05e9\u05dc\u05d5\u05dd \u202e abc " + "e" + "\u0301" * 40 + " \U0001f9d1\u200d\U0001f680"
)
TEXT = f"{HOSTILE} {RIGHT_TO_LEFT} " + "x" * 500 + "한국어" * 60


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    hostile = [row | {"completion": TEXT, "prompt": row["prompt"] + TEXT} for row in SAMPLES]
    preflight = json.loads(json.dumps(PREFLIGHT))
    preflight["splits"][0]["source"] = HOSTILE
    evaluation = json.loads(json.dumps(EVALUATION))
    evaluation["metrics"][HOSTILE] = evaluation["metrics"]["loss"]
    gaps = [*LOG[:3], {"loss": None, "step": 15, "epoch": 1.5, "grad_norm": None}, *LOG[3:]]
    found = {
        "whole": write_run(folder / "whole"),
        "hostile": write_run(
            folder / "hostile",
            samples=hostile,
            preflight=preflight,
            evaluation=evaluation,
            log=gaps,
        ),
        "begun": write_run(
            folder / "begun", complete=False, log=LOG[:2], metrics=None, evaluation=None, judge=None
        ),
    }
    for run in found.values():
        assert write_page(run)["missing"] == []
    write_comparison(list(found.values()))
    return found


@pytest.fixture
def whole(browser: Any, runs: dict[str, Path]) -> Iterator[Any]:
    with opened(browser, (runs["whole"] / "report.html").as_uri()) as page:
        yield page


@pytest.fixture
def compared(browser: Any, runs: dict[str, Path]) -> Iterator[Any]:
    with opened(browser, (runs["whole"] / "comparison.html").as_uri()) as page:
        yield page


def shown(page: Any, selector: str) -> int:
    """How many elements have a place on the page."""
    return int(
        page.evaluate(
            "selector => [...document.querySelectorAll(selector)]"
            ".filter(one => one.getBoundingClientRect().width > 0).length",
            selector,
        )
    )


def loss(page: Any) -> Any:
    return page.locator("#training figure.over:visible, #curves figure.over:visible").first


def readout(page: Any) -> str:
    return str(loss(page).locator(".readout").inner_text())


# --- curves ---------------------------------------------------------------------------------------


def test_curves_are_drawn_once_and_over_the_axis_that_is_chosen(whole: Any) -> None:
    assert shown(whole, "#training figure.over svg") == 1
    assert shown(whole, "#training figure.always svg") == 4
    line = loss(whole).locator("svg.wide path[style*='--series-1']").first
    assert line.bounding_box()["width"] > 200
    for label, text in (
        ("epochs", "epoch 0.50 · training 2.5"),
        ("training tokens", "1,000 tokens · training 2.5"),
        ("optimizer steps", "step 5 · training 2.5"),
    ):
        whole.get_by_label(label).check()
        assert shown(whole, "#training figure.over svg") == 1
        loss(whole).locator(".plot").focus()
        whole.keyboard.press("ArrowRight")
        whole.keyboard.press("ArrowRight")
        assert readout(whole) == text


def test_pointing_at_a_curve_shows_the_nearest_entry(whole: Any) -> None:
    assert readout(whole).startswith("Point at a curve")
    plot = loss(whole).locator(".plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    whole.mouse.move(box["x"] + box["width"] * 0.97, box["y"] + box["height"] / 2)
    assert readout(whole) == "step 10 · training 1.5 · validation 1.25"
    assert plot.locator("circle.cursor:visible").count() == 2
    whole.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] / 2)
    assert readout(whole) == "step 0 · validation 3"
    whole.mouse.move(5, 5)
    assert readout(whole).startswith("Point at a curve")
    assert plot.locator(".cursor").count() == 0


def test_the_cursor_stands_on_the_curve(whole: Any) -> None:
    plot = loss(whole).locator(".plot")
    plot.focus()
    whole.keyboard.press("End")
    places = plot.evaluate("""plot => {
        const svg = plot.querySelector('svg.wide');
        const centers = selector => [...svg.querySelectorAll(selector)].map(one => {
            const box = one.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        });
        return {marks: centers('use'), dots: centers('circle.cursor')};
    }""")
    assert len(places["dots"]) == 2
    for x, y in places["dots"]:
        assert min(abs(x - a) + abs(y - b) for a, b in places["marks"]) < 3


def test_a_finger_works_like_a_mouse(browser: Any, runs: dict[str, Path]) -> None:
    options = {"viewport": {"width": 380, "height": 800}, "has_touch": True}
    with opened(browser, (runs["whole"] / "report.html").as_uri(), **options) as page:
        plot = loss(page).locator(".plot")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] * 0.95, box["y"] + box["height"] / 2)
        assert readout(page) == "step 10 · training 1.5 · validation 1.25"


def test_keys_go_through_entries_and_stay_at_the_ends(whole: Any) -> None:
    loss(whole).locator(".plot").focus()
    seen = []
    for key in ("ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home"):
        whole.keyboard.press(key)
        seen.append(readout(whole).split(" · ")[0])
    assert seen == ["step 0", "step 0", "step 10", "step 10", "step 0"]
    whole.keyboard.press("Tab")
    assert readout(whole).startswith("Point at a curve")


# --- tables ---------------------------------------------------------------------------------------


def test_a_heading_sorts_by_value_with_mouse_and_keyboard(whole: Any) -> None:
    def column(at: int) -> list[str]:
        cells = whole.locator(f"#verdict tbody tr td:nth-child({at})")
        return [text.strip() for text in cells.all_inner_texts()]

    assert column(1) == ["loss", "chrf"]
    heading = whole.locator("#verdict th", has_text="difference")
    heading.get_by_role("button").click()
    assert column(4) == ["-1.500", "+40.000"]
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").press("Enter")
    assert column(4) == ["+40.000", "-1.500"]
    assert heading.get_attribute("aria-sort") == "descending"
    whole.locator("#data th", has_text="tokens").first.get_by_role("button").click()
    assert whole.locator("#data table").first.locator(
        "tbody td:nth-child(3)"
    ).all_inner_texts() == [
        "350",
        "2,000",
    ]


# --- widths, colours, paper -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["whole", "hostile", "begun"])
@pytest.mark.parametrize("width", [320, 380, 1280])
def test_no_page_scrolls_sideways(
    width: int, name: str, browser: Any, runs: dict[str, Path]
) -> None:
    options = {"viewport": {"width": width, "height": 800}}
    with opened(browser, (runs[name] / "report.html").as_uri(), **options) as page:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert overflow(page) == 0
        inside = """() => [...document.querySelectorAll('p, h1, h2, .told, svg, .figures div, pre')]
            .every(one => one.getBoundingClientRect().right <= innerWidth)"""
        assert page.evaluate(inside)


@pytest.mark.parametrize("width", [320, 1280])
def test_no_comparison_scrolls_sideways(width: int, compared: Any) -> None:
    compared.set_viewport_size({"width": width, "height": 800})
    assert overflow(compared) == 0


def test_texts_in_curves_are_as_large_on_a_telephone(browser: Any, runs: dict[str, Path]) -> None:
    for width in (380, 1280):
        options = {"viewport": {"width": width, "height": 800}}
        with opened(browser, (runs["whole"] / "report.html").as_uri(), **options) as page:
            heights = page.evaluate("""() => [...document.querySelectorAll('svg text')]
                .map(one => one.getBoundingClientRect().height).filter(height => height > 0)""")
            assert len(heights) > 20
            assert min(heights) >= 11


NAMES = ["body", ".quiet", "nav a", ".good", ".bad", ".state", ".verdict", "dt", ".figures small"]


def test_light_and_dark_have_colours_of_their_own_and_enough_contrast(whole: Any) -> None:
    light = whole.evaluate(CONTRASTS, NAMES)
    curve = (
        "() => getComputedStyle(document.querySelector('svg path[style*=\"--series-1\"]')).stroke"
    )
    colors = [whole.evaluate(curve)]
    whole.emulate_media(color_scheme="dark")
    dark = whole.evaluate(CONTRASTS, NAMES)
    colors.append(whole.evaluate(curve))
    assert len(set(colors)) == 2
    for name in NAMES:
        assert light[name][:2] != dark[name][:2]
        assert min(light[name][2], dark[name][2]) >= 4.5, name  # WCAG 2 AA


def test_on_paper_it_is_light_and_everything_is_open(whole: Any) -> None:
    whole.emulate_media(media="print", color_scheme="dark")
    whole.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert whole.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert whole.evaluate("[...document.querySelectorAll('details')].every(one => one.open)")
    assert shown(whole, "nav, .axes") == 0
    assert shown(whole, "#training figure.over svg.wide") == 1
    assert len(whole.pdf()) > 10_000


# --- what comes from data -------------------------------------------------------------------------


def test_what_stands_in_the_data_is_shown_and_not_obeyed(
    browser: Any, runs: dict[str, Path]
) -> None:
    with opened(browser, (runs["hostile"] / "report.html").as_uri()) as page:
        assert page.locator("main script:not([type]), main img").count() == 0
        told = page.locator(".told", has_text="window.hit=1").first
        assert "</script><script>window.hit=1</script>" in told.inner_text()
        assert told.get_attribute("dir") == "auto"
        assert page.locator("#verdict td", has_text="window.hit").count() == 1


def test_right_to_left_texts_turn_nothing_else_around(browser: Any, runs: dict[str, Path]) -> None:
    with opened(browser, (runs["hostile"] / "report.html").as_uri()) as page:
        styles = """() => [...document.querySelectorAll('.told')].map(
            one => [getComputedStyle(one).unicodeBidi, getComputedStyle(one).overflow])"""
        # a direction of its own, and stacked marks that stay inside their box
        assert {tuple(style) for style in page.evaluate(styles)} == {("isolate", "hidden")}
        assert page.locator("#answers dt").first.inner_text() == "prompt"


# --- a sweep --------------------------------------------------------------------------------------


@pytest.fixture
def swept(browser: Any, tmp_path: Path) -> Iterator[Any]:
    sweep = write_sweep(tmp_path / "sweep", trials=True, error=TEXT)
    write_sweep_page(sweep, read_table(sweep))
    with opened(browser, sweep.page.as_uri()) as page:
        yield page


def test_the_jobs_of_a_sweep_are_ranked_sorted_and_linked(swept: Any) -> None:
    def column(at: int) -> list[str]:
        return list(swept.locator(f"#jobs tbody td:nth-child({at})").all_inner_texts())

    assert column(1) == ["1", "2", "3", "-"]
    assert column(2) == ["8", "4", "64", "0"]
    swept.locator("#jobs th", has_text="lora.r").get_by_role("button").click()
    assert column(2) == ["0", "4", "8", "64"]  # as numbers, not as texts
    swept.locator("#jobs th", has_text="#").get_by_role("button").click()
    assert column(1) == ["1", "2", "3", "-"]
    assert swept.get_by_role("link", name="r-8").get_attribute("href") == "r-8/report.html"
    assert shown(swept, "#parameters svg") == 1
    assert shown(swept, "#search svg") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_sweep_is_read_on_a_telephone_and_in_the_dark(swept: Any, scheme: str) -> None:
    swept.set_viewport_size({"width": 380, "height": 800})
    swept.emulate_media(color_scheme=scheme)
    assert overflow(swept) == 0
    names = ["body", "td.best", ".bad", ".state", "#jobs a"]
    found = swept.evaluate(CONTRASTS, names)
    assert min(contrast for _, _, contrast in found.values()) >= 4.5


# --- reading aloud, and the comparison ------------------------------------------------------------


def test_a_screen_reader_finds_sections_charts_and_changes(whole: Any) -> None:
    assert whole.get_by_role("region", name="Did it help?").count() == 1
    assert whole.get_by_role("navigation", name="Sections").count() == 1
    assert whole.get_by_role("group", name="loss over step").count() == 1
    assert loss(whole).locator(".readout").get_attribute("aria-live") == "polite"
    assert whole.locator("svg:not([aria-hidden=true])").count() == 0
    whole.get_by_role("link", name="Data").click()
    assert whole.evaluate("location.hash") == "#data"


def test_three_runs_lie_over_each_other(compared: Any) -> None:
    assert compared.locator("h1").inner_text() == "whole · hostile · begun"
    assert shown(compared, "#curves figure.over svg") == 2  # of training and of validation
    colors = compared.locator("#curves figure.over:visible svg.wide").first.evaluate(
        "svg => [1, 2, 3].map(n => svg.querySelectorAll(`[style*='--series-${n})']`).length > 0)"
    )
    assert colors == [True, True, True]
    compared.get_by_label("epochs").check()
    loss(compared).locator(".plot").focus()
    compared.keyboard.press("Home")
    assert readout(compared) == "epoch 0.50 · whole 2.5 · hostile 2.5 · begun 2.5"
    states = compared.locator("#figures .state").all_inner_texts()
    assert states == ["complete", "complete", "stopped"]
