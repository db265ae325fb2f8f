"""The report and its plots as a person sees them: in Chromium, offline, at the width of a desktop and of a phone."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_page import HOSTILE, NAMES, hostile

from reporting import page
from tests.stress.chromium import CHROMIUM, DESK, DRIVER, PHONE, chromium, emulate, resize
from tests.stress.made_up_studies import made_up_study, made_up_trials, promoted, write_files, write_finals

pytestmark = pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="chromium and chromedriver are not on PATH")

OVERLAPPING = """
const boxes = [...document.querySelectorAll('h1, h2, h3, figcaption, figure svg, table, p, dl, summary, nav ol')]
  .filter(e => e.checkVisibility() && !e.closest('svg svg'))
  .map(e => [e, e.getBoundingClientRect()]).filter(([e, r]) => r.width && r.height);
const found = [];
for (const [a, r] of boxes) for (const [b, s] of boxes)
  if (a !== b && !a.contains(b) && !b.contains(a)
      && Math.min(r.right, s.right) - Math.max(r.left, s.left) > 1
      && Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top) > 1)
    found.push([a.outerHTML.slice(0, 80), b.outerHTML.slice(0, 80)]);
return found;
"""
OUTSIDE = """
const width = document.documentElement.clientWidth;
return [...document.querySelectorAll('body *')].filter(e => {
  const r = e.getBoundingClientRect();
  return e.checkVisibility() && !e.closest('.scroll') && r.width && (r.right > width + 1 || r.left < -1);
}).map(e => e.outerHTML.slice(0, 120));
"""
LETTERS_CUT = """
const found = [];
for (const svg of document.querySelectorAll('figure svg')) {
  if (!svg.checkVisibility()) continue;
  const box = svg.getBoundingClientRect();
  for (const text of svg.querySelectorAll('text')) {
    const r = text.getBoundingClientRect();
    const across = r.left < box.left - 14 || r.right > box.right + 14;
    if (r.width && (across || r.top < box.top - 6 || r.bottom > box.bottom + 6))
      found.push(text.textContent);
  }
}
return found;
"""
SMALLEST_LETTERS = """
return Math.min(...[...document.querySelectorAll('figure svg text')].filter(e => e.checkVisibility()).map(
  e => parseFloat(getComputedStyle(e).fontSize) * e.closest('svg').getBoundingClientRect().width
    / e.closest('svg').viewBox.baseVal.width));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return a Chromium that reaches nothing but files."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    with chromium() as driver:
        driver.execute_cdp_cmd("Network.enable", {})
        conditions = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
        yield driver


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return reports of a retrained study, of an empty one and of one in which every name is an attack."""
    folder = tmp_path_factory.mktemp("browser")
    trials = made_up_trials(40)
    study = made_up_study(trials)
    write_files(study, folder / "whole")
    write_finals(study, folder / "whole", evaluations=2)
    insulted = made_up_study(hostile(trials), name=HOSTILE)
    write_files(insulted, folder / "hostile", classes=NAMES)
    (folder / "empty").mkdir()
    (folder / "paused").mkdir()
    resting = made_up_study(promoted(trials, paused=True), scheduler="promote")
    studies = {"whole": study, "hostile": insulted, "empty": made_up_study([]), "paused": resting}
    return {name: page.write(each, folder / name) for name, each in studies.items()}


def opened(browser: Any, path: Path, width: int, levels: tuple[str, ...] = ("SEVERE", "WARNING")) -> list[str]:
    """Open a page and return the complaints in its console."""
    resize(browser, width)
    browser.get_log("browser")
    browser.get(path.as_uri())
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in levels]


@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("name", ["whole", "hostile", "empty", "paused"])
def test_the_report_is_whole_at_every_width(browser: Any, reports: dict[str, Path], name: str, width: int) -> None:
    assert opened(browser, reports[name], width) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(OUTSIDE) == []
    assert browser.execute_script(OVERLAPPING) == []
    assert browser.execute_script(LETTERS_CUT) == []
    visible = "return [...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height)"
    heights = browser.execute_script(visible)
    assert all(height > 40 for height in heights)
    assert bool(heights) == (name != "empty")


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_letters_in_figures_can_be_read(browser: Any, reports: dict[str, Path], width: int) -> None:
    opened(browser, reports["whole"], width)
    assert browser.execute_script(SMALLEST_LETTERS) >= 8.5


def test_hostile_names_are_seen_and_run_nothing(browser: Any, reports: dict[str, Path]) -> None:
    assert opened(browser, reports["hostile"], DESK) == []
    assert browser.execute_script("return document.scripts.length") == 0
    assert browser.execute_script("return document.querySelectorAll('main img, main b').length") == 0
    shown = browser.execute_script("return document.body.textContent")
    assert all(name in shown for name in NAMES)
    assert browser.title == f"{HOSTILE} - study report"


def test_in_the_dark_the_figures_are_dark_too(browser: Any, reports: dict[str, Path]) -> None:
    opened(browser, reports["whole"], DESK)
    ink = "return getComputedStyle(document.querySelector('figure svg text')).fill"
    paper = "return getComputedStyle(document.body).backgroundColor"
    by_day = (browser.execute_script(ink), browser.execute_script(paper))
    emulate(browser, dark=True)
    by_night = (browser.execute_script(ink), browser.execute_script(paper))
    emulate(browser)
    assert by_day[1] == "rgb(255, 255, 255)"
    assert all(day != night for day, night in zip(by_day, by_night, strict=True))


def test_on_paper_the_figures_are_printed_and_the_contents_are_not(browser: Any, reports: dict[str, Path]) -> None:
    opened(browser, reports["whole"], PHONE)
    emulate(browser, media="print")
    seen = "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).length"
    counts = [browser.execute_script(seen, selector) for selector in ("figure svg", "nav", ".plot")]
    emulate(browser)
    assert counts == [10, 0, 0]


@pytest.mark.parametrize("name", ["whole", "hostile"])
def test_every_interactive_page_draws_its_figure(browser: Any, reports: dict[str, Path], name: str) -> None:
    pages = sorted((reports[name].parent / "plots").glob("*.html"))
    assert len(pages) == 8
    for path in pages:
        # That WebGL is drawn by the processor, as here, is a warning.
        assert opened(browser, path, DESK, levels=("SEVERE",)) == []
        deadline = time.monotonic() + 30
        while not browser.execute_script("return document.querySelectorAll('#figure .main-svg').length"):
            assert time.monotonic() < deadline, f"{path.name} drew nothing"
        assert browser.execute_script("return document.documentElement.scrollWidth") <= DESK
        assert browser.execute_script("return document.querySelectorAll('#figure b, #figure img').length") == 0
