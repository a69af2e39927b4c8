"""The report in a real browser, cut off from any network: what is on the page is what is in the study's folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_study import HOSTILE, make_study

from hpcmass.sweep.records import read_trials
from hpcmass.sweep.report import write_report
from hpcmass.sweep.show import study_summary, study_table

pytestmark = pytest.mark.browser
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
SECTIONS = [
    "overview", "history", "importances", "parallel", "slices", "curves", "time", "cost", "failures", "trials",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").sync_playwright
    program = os.environ.get("HPCMASS_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with sync() as playwright:
        # As root a browser's own sandbox cannot be had; the page is ours and has no network.
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=args)
        yield browser
        browser.close()


class Opened:
    """A page with what it said and asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        context = browser.new_context(offline=True, **{"viewport": {"width": 1280, "height": 900}, **options})
        context.route("http*://**", lambda route: route.abort())
        self.page = context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.absolute().as_uri())
        self.page.wait_for_selector("html[data-ready=yes]")

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def column(self, place: int) -> list[str]:
        return [str(t) for t in self.page.locator(f"#rows tbody td:nth-child({place})").all_inner_texts()]

    def ink(self, section: str) -> int:
        """Pixels that are drawn on the first canvas of a section."""
        script = """(canvas) => { const d = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            let n = 0; for (let i = 3; i < d.length; i += 4) if (d[i] > 40) n++; return n; }"""
        return int(self.page.locator(f"#{section} canvas").first.evaluate(script))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_study(tmp_path_factory.mktemp("browser") / "digits", 71)
    write_report(folder)
    return folder


@pytest.fixture
def opened(browser: Any, study: Path) -> Opened:
    return Opened(browser, study / "report.html")


def test_it_opens_without_network_and_without_a_complaint(opened: Opened, study: Path) -> None:
    assert opened.page.locator("section").evaluate_all("all => all.map(one => one.id)") == SECTIONS
    assert opened.said == []
    assert opened.asked == [(study / "report.html").absolute().as_uri()]
    assert opened.page.title() == "digits: hpcmass study"
    for section in ("history", "parallel", "slices", "curves", "time"):
        assert opened.ink(section) > 200, section


def test_its_numbers_are_the_studys(opened: Opened, study: Path) -> None:
    summary = study_summary(study)
    assert summary.best is not None
    assert float(opened.text("#best")) == pytest.approx(summary.best.value, rel=1e-4)
    assert f"trial {summary.best.number}" in opened.text("#overview")
    for state in ("complete", "pruned", "failed"):
        assert opened.text(f"#counts [data-state={state}]").split() == [str(summary.counts[state]), state]
    assert opened.text("#counted") == f"70 of {summary.planned}"
    failed = [spec.number for spec, outcome in read_trials(study) if outcome and outcome.state == "failed"]
    assert f"{len(failed)} trials failed" in opened.text("#failures")
    assert opened.page.locator("#failures .links button").all_inner_texts() == [f"trial {n}" for n in failed]
    assert opened.text("#rows-said") == "1–50 of 71"
    assert opened.text("#targets [data-used=gpu]") == "100.0 %"


def test_the_table_is_sorted_by_a_click_and_turned(opened: Opened, study: Path) -> None:
    rows = [row for row in study_table(study) if row.value is not None]
    best = sorted(rows, key=lambda row: (-row.value, row.number))
    assert opened.column(1)[:20] == [str(row.number) for row in best[:20]]
    opened.page.click("#rows th button:text-is('lr')")
    assert opened.page.get_attribute("#rows th:has(button:text-is('lr'))", "aria-sort") == "ascending"
    by_lr = sorted(study_table(study), key=lambda row: row.params["lr"])
    assert opened.column(1) == [str(row.number) for row in by_lr[:50]]
    opened.page.click("#rows th button:text-is('lr')")
    assert opened.column(1) == [str(row.number) for row in by_lr[::-1][:50]]
    opened.page.click("text=Next")
    assert opened.column(1) == [str(row.number) for row in by_lr[::-1][50:]]
    opened.page.select_option("#trials select", label="failed")
    assert set(opened.column(2)) == {"failed"}
    opened.page.fill("#trials input[type=search]", "no room for 13 GB")
    assert opened.column(1) == ["13"]
    assert opened.said == []


def test_pointing_at_a_trial_tells_of_it_and_a_click_tells_all(opened: Opened, study: Path) -> None:
    best = study_summary(study).best
    assert best is not None
    plot = opened.page.locator("#history .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    # Along the plot's width some trial is near the pointer at each of these heights.
    found: set[str] = set()
    for share in range(5, 100, 3):
        for height in (0.2, 0.35, 0.5):
            opened.page.mouse.move(box["x"] + box["width"] * share / 100, box["y"] + box["height"] * height)
            if opened.page.is_visible("#tip"):
                found.add(opened.text("#tip b"))
    assert len(found) > 10
    opened.page.click("#overview .tile a")
    detail = opened.text("#detail")
    assert f"Trial {best.number}" in detail
    assert f"{best.params['lr']:.5g}" in detail
    opened.page.keyboard.press("Escape")
    assert not opened.page.is_visible("#detail")


def test_a_brush_keeps_the_trials_that_pass_there(opened: Opened, study: Path) -> None:
    grip = opened.page.locator("#parallel [data-axis=family]")
    grip.scroll_into_view_if_needed()
    box = grip.bounding_box()
    x, middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.page.mouse.move(x, box["y"] + box["height"] - 2)
    opened.page.mouse.down()
    opened.page.mouse.move(x, middle + 20)
    opened.page.mouse.move(x, middle + 4)
    opened.page.mouse.up()
    rows = [row for row in study_table(study) if row.state in ("complete", "pruned")]
    cnn = [row for row in rows if row.params["family"] == "cnn"]  # the first choice lies below
    opened.page.wait_for_function(
        "want => document.getElementById('parallel-kept').textContent.startsWith(want)",
        arg=f"{len(cnn)} trials of {len(rows)} kept",
    )
    opened.page.click("#parallel button:text-is('Clear')")
    assert opened.text("#parallel-kept") == f"{len(rows)} trials."


def test_a_part_of_the_time_is_looked_at_closely(opened: Opened) -> None:
    plot = opened.page.locator("#time .plot").last
    plot.scroll_into_view_if_needed()
    before, box = opened.text("#time .plot >> nth=-1"), plot.bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 30)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 30, steps=4)
    opened.page.mouse.up()
    assert opened.text("#time .plot >> nth=-1") != before
    opened.page.click("text=Whole time")
    assert opened.text("#time .plot >> nth=-1") == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_either_scheme(browser: Any, study: Path, width: int, scheme: str) -> None:
    opened = Opened(
        browser, study / "report.html", viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    assert opened.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    light = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(v => v > 200)"
    assert opened.page.evaluate(light) == (scheme == "light")
    opened.page.click("#theme")
    assert opened.page.evaluate(light) == (scheme == "dark")
    # No two words on an axis lie over each other, and none is cut off at the page's side.
    overlaps = """() => [...document.querySelectorAll('.plot svg')].flatMap(svg => {
        const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
        return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([, q]) => p.left < q.right - 1 && q.left < p.right - 1
            && p.top < q.bottom - 2 && q.top < p.bottom - 2).map(([b]) => `${a} | ${b}`)); })"""
    assert opened.page.evaluate(overlaps) == []
    assert opened.said == []


def test_what_is_hostile_is_text(browser: Any, tmp_path: Path) -> None:
    folder = make_study(tmp_path / "evil", 14, several=True, hostile=True)
    opened = Opened(browser, write_report(folder))
    assert opened.page.locator("section").count() == len(SECTIONS) + 1  # and the Pareto front
    assert opened.page.locator("img").count() == 0
    assert HOSTILE in opened.text("#slices")
    opened.page.click("#rows tbody tr >> nth=0")
    assert HOSTILE in opened.text("#detail")
    opened.page.keyboard.press("Escape")
    assert HOSTILE in opened.text("#failures")
    assert "\u202e" not in opened.text("body")
    # Nor could a script in it run, or a picture be fetched, if it came to be markup.
    opened.page.evaluate(
        "t => { document.body.insertAdjacentHTML('beforeend', t.replace('=x', '=https://x.invalid/')); }",
        HOSTILE,
    )
    opened.page.wait_for_function("document.querySelector('img').complete")
    assert all("Content Security Policy" in line for line in opened.said)
    assert len(opened.said) == 2, opened.said  # the picture and its handler
    assert not any(line.startswith("dialog") for line in opened.said)


def test_a_study_that_has_hardly_begun(browser: Any, tmp_path: Path) -> None:
    for trials in (0, 1, 2):
        opened = Opened(browser, write_report(make_study(tmp_path / f"few-{trials}", trials)))
        assert opened.said == []
        assert opened.page.locator("section").count() == len(SECTIONS)
        assert "too few to say" in opened.text("#importances")


def test_thousands_of_trials_are_all_on_the_page(browser: Any, tmp_path: Path, study: Path) -> None:
    """Made by repeating a study's data: the page's part of the work is what is looked at."""
    from hpcmass.sweep.report import gather, render

    data, times = gather(study), 150
    count = len(data["trials"]["number"])
    columns = data["trials"]
    for name, column in columns.items():
        columns[name] = (
            [[key, values * times] for key, values in column]
            if name in ("params", "measured")
            else column * times
        )
    columns["number"] = list(range(count * times))
    file = tmp_path / "many.html"
    file.write_text(render(data), encoding="utf-8")
    opened = Opened(browser, file)
    assert opened.said == []
    assert opened.text("#rows-said") == "1–50 of 10\u2009650"
    opened.page.click("#rows th button:text-is('depth')")
    assert opened.page.locator("#rows tbody tr").count() == 50
    assert opened.ink("history") > 2000
