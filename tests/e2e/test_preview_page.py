"""The page of `sftpipe preview`, in a real headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from datasets import Dataset

from sftpipe.data.labels import IGNORED
from sftpipe.data.preflight.preview import write_page
from support.browser import CONTRASTS, chromium, opened, overflow

pytestmark = pytest.mark.slow  # a browser of its own

PROMPT, ANSWER = (
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "Good day.<|im_end|>",
)
MARKUP = "</script><script>window.hit=1</script><img src=x onerror=window.hit=1>\"'&amp;"
HOSTILE = MARKUP + "\u2028 \u05e9\u05dc\u05d5\u05dd e\u0301 \U0001f9d1\u200d\U0001f680 "
WIDE = "<|im_start|>user\n" + "x" * 400 + " " + "\ud55c\uad6d\uc5b4" * 40 + "<|im_end|>\n"


def encoded(tokenizer: Any, prompt: str, answer: str, after: str = "") -> dict[str, list[int]]:
    parts = [
        tokenizer(part, add_special_tokens=False).input_ids for part in (prompt, answer, after)
    ]
    return {
        "input_ids": [*parts[0], *parts[1], *parts[2]],
        "labels": [IGNORED] * len(parts[0]) + parts[1] + [IGNORED] * len(parts[2]),
    }


def packed(*rows: dict[str, list[int]]) -> dict[str, list[int]]:
    joined = {
        name: [number for row in rows for number in row[name]] for name in ("input_ids", "labels")
    }
    return {**joined, "seq_lengths": [len(row["input_ids"]) for row in rows]}


@pytest.fixture(scope="module")
def page_url(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    simple = encoded(tokenizer, PROMPT, ANSWER, "\n")
    full = encoded(tokenizer, "", "Nothing but text.")
    full["labels"][0] = IGNORED
    hostile = packed(encoded(tokenizer, HOSTILE, HOSTILE))
    train = Dataset.from_list(
        [packed(simple, full), packed(encoded(tokenizer, WIDE, ANSWER)), hostile]
    )
    splits = {"train": train, "test": Dataset.from_list([simple])}
    return write_page(
        tmp_path_factory.mktemp("page"), splits, tokenizer, 3, '<b id="injected">title</b>'
    ).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(name="opened")
def opened_page(browser: Any, page_url: str) -> Iterator[Any]:
    with opened(browser, page_url) as page:
        yield page


def token(page: Any, row: str, at: int) -> Any:
    return page.locator(f"[role=listbox][aria-label^='{row},'] .token").nth(at)


def detail(page: Any) -> str:
    return " ".join(page.locator("#detail").inner_text().split())


def focused(page: Any) -> str:
    """`split[row] number` of the focused token."""
    return str(
        page.evaluate("""() => {
            const row = document.activeElement.closest('[role=listbox]');
            const tokens = [...row.querySelectorAll('.token')];
            return row.ariaLabel.split(',')[0] + ' ' + tokens.indexOf(document.activeElement);
        }""")
    )


def test_pointing_at_a_token_shows_its_id_place_and_reason(opened: Any, tokenizer: Any) -> None:
    token(opened, "test[0]", 0).hover()
    assert (
        detail(opened)
        == "token <|im_start|> id 1 in the vocabulary <|im_start|> position 0 masked "
        "prompt: before what is trained"
    )

    good = tokenizer(PROMPT, add_special_tokens=False).input_ids
    token(opened, "test[0]", len(good)).hover()
    (number,) = tokenizer("Good", add_special_tokens=False).input_ids
    assert (
        detail(opened)
        == f"token Good id {number} in the vocabulary Good position {len(good)} label trained"
    )

    opened.mouse.move(5, 5)
    assert detail(opened) == "Point at a token, or press Tab and then the arrow keys."


def test_a_packed_row_shows_where_a_sequence_begins_and_counts_positions_anew(
    opened: Any, tokenizer: Any
) -> None:
    length = len(encoded(tokenizer, PROMPT, ANSWER, "\n")["input_ids"])
    assert opened.locator(".boundary").all_inner_texts() == [
        f"sequence 1 of 2, {length} tokens",
        "sequence 2 of 2, 4 tokens",
    ]
    token(opened, "train[0]", length - 1).hover()
    assert detail(opened).endswith(
        f"position {length - 1} in sequence 1, {length - 1} in the row masked after the end of "
        "the answer"
    )
    token(opened, "train[0]", length).hover()
    assert detail(opened).endswith(
        f"position 0 in sequence 2, {length} in the row masked first token of a packed sequence"
    )


def test_a_row_is_one_tab_stop_and_arrow_keys_move_between_its_tokens(opened: Any) -> None:
    token(opened, "train[0]", 0).focus()
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowRight")
    assert focused(opened) == "train[0] 2"
    assert "id 198 " in detail(opened)
    opened.keyboard.press("Tab")
    assert focused(opened) == "train[1] 0"
    opened.keyboard.press("Shift+Tab")
    assert focused(opened) == "train[0] 2"  # where it was left
    for key, reached in (
        ("ArrowLeft", 1),
        ("Home", 0),
        ("ArrowLeft", 0),
        ("ArrowDown", 4),
        ("ArrowUp", 0),
    ):
        opened.keyboard.press(key)
        assert focused(opened) == f"train[0] {reached}"
    opened.keyboard.press("End")
    last = opened.locator("[aria-label^='train[0],'] .token").count() - 1
    assert focused(opened) == f"train[0] {last}"
    opened.keyboard.press("ArrowRight")
    assert focused(opened) == f"train[0] {last}"


def test_the_focused_token_has_an_outline_and_stands_above_the_detail(opened: Any) -> None:
    opened.set_viewport_size({"width": 390, "height": 500})
    token(opened, "train[1]", 0).focus()
    opened.keyboard.press("End")
    current = opened.locator(":focus")
    assert current.evaluate("element => getComputedStyle(element).outlineWidth") == "3px"
    box, bar = current.bounding_box(), opened.locator("#detail").bounding_box()
    assert box["y"] + box["height"] <= bar["y"]


def test_a_screen_reader_hears_rows_tokens_and_changes_of_the_detail(opened: Any) -> None:
    assert opened.locator("#detail").get_attribute("aria-live") == "polite"
    assert token(opened, "test[0]", 0).get_attribute("aria-label") == "<|im_start|>, masked"
    assert opened.get_by_role("listbox").count() == 4
    assert opened.get_by_role("group", name="sequence 1 of 2").get_by_role("option").count() > 0
    assert opened.get_by_role("region", name="train").count() == 1


def test_what_stands_in_the_data_is_shown_and_not_obeyed(opened: Any) -> None:
    shown = opened.locator("[aria-label^='train[2],'] .token").all_inner_texts()
    text = "".join(part for part in shown if part != "⋯")
    assert text.startswith(
        "</script><script>window.hit=1</script><img·src=x·onerror=window.hit=1>\"'&amp;[U+2028]·\u05e9\u05dc\u05d5\u05dd·e"
    )
    assert "\U0001f9d1" in text
    assert opened.locator("main script, main img, #injected").count() == 0
    assert opened.locator("h1").inner_text() == '<b id="injected">title</b>'


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_tokens_wrap_and_the_page_never_scrolls_sideways(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 800})
    token(opened, "train[2]", 0).focus()
    assert overflow(opened) == 0
    inside = """() => [...document.querySelectorAll('.token')].every(
        token => token.getBoundingClientRect().right <= innerWidth
    )"""
    assert opened.evaluate(inside)


def test_light_and_dark_have_colours_of_their_own_and_enough_contrast(opened: Any) -> None:
    names = [".token.trained", ".token:not(.trained)", ".quiet", "nav a", "body"]
    light = opened.evaluate(CONTRASTS, names)
    opened.emulate_media(color_scheme="dark")
    dark = opened.evaluate(CONTRASTS, names)
    for name in light:
        assert light[name][:2] != dark[name][:2]
        assert min(light[name][2], dark[name][2]) >= 4.5  # WCAG 2 AA
    for scheme in (light, dark):
        assert scheme[".token.trained"][1] != scheme[".token:not(.trained)"][1]
