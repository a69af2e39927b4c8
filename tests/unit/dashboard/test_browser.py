"""The dashboard in a real browser: signing in, every view, live changes, hostile names, keyboard, a phone."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_project import HOSTILE, Client, made_deployment, made_project, made_run, made_version, served
from made_study import make_study

from hpcmass.config import Project
from hpcmass.files import append_record, read_json, replace_json
from hpcmass.runs import State
from hpcmass.sweep.show import study_summary

pytestmark = pytest.mark.browser
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
VIEWS = ["overview", "runs", "runs/done", "runs/broken", "runs/lost", "studies", "studies/digits", "studies/digits/3",
         "models", "models/net@2", "deployments", "deployments/front"]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").sync_playwright
    program = os.environ.get("HPCMASS_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with sync() as playwright:
        # As root a browser's own sandbox cannot be had; the page is ours and asks nobody else.
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=args)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A project that the tests of this file only look at, or add to under names of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        project = made_project(tmp_path_factory.mktemp("browser") / "made")
        make_study(project.studies / "digits", 41, hostile=True)
        with served(project) as client:
            client.project = project
            yield client


class Opened:
    """A page, with what it said and whom it asked."""

    def __init__(self, browser: Any, client: Client, **options: Any) -> None:
        self.client, self.said, self.asked = client, list[str](), list[str]()
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(f"{client.server.url}#{client.access.token}")
        self.page.wait_for_selector("html[data-ready=yes]")

    def go(self, view: str) -> None:
        self.page.evaluate(
            "v => { document.documentElement.dataset.ready = ''; location.hash = '#/' + v; }", view
        )
        self.page.wait_for_selector("#body:not([aria-busy])")

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))


@pytest.fixture
def opened(browser: Any, shared: Client) -> Iterator[Opened]:
    found = Opened(browser, shared)
    yield found
    found.context.close()


def project_of(opened: Opened) -> Project:
    return opened.client.project


def test_it_signs_in_and_keeps_the_token_out_of_the_address(opened: Opened) -> None:
    access = opened.client.access
    assert opened.page.url.startswith(f"{opened.client.server.url}{access.room}/")
    assert access.token not in opened.page.url
    assert access.token not in opened.page.evaluate(
        "document.cookie + JSON.stringify({...sessionStorage, ...localStorage})"
    )
    [cookie] = opened.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", f"/{access.room}/")
    opened.page.reload()
    opened.page.wait_for_selector("html[data-ready=yes]")
    assert opened.text("#project") == "made"
    assert not [url for url in opened.asked if not url.startswith(opened.client.server.url)]
    assert opened.said == []


def test_without_the_token_it_asks_for_it(browser: Any, shared: Client) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{shared.server.url}#wrong")
    page.wait_for_selector("#form:not([hidden])")
    assert "does not fit" in page.inner_text("#said")
    page.fill("#token", shared.access.token)
    page.keyboard.press("Enter")
    page.wait_for_selector("html[data-ready=yes]")
    context.close()


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_draws_without_a_complaint_and_shows_markup_as_text(opened: Opened, view: str) -> None:
    opened.go(view)
    assert opened.page.locator("#body section").count() > 0
    assert opened.page.locator("#body script, #body img").count() == 0
    assert opened.page.title().endswith("hpcmass")
    assert opened.said == []


def test_what_a_user_wrote_is_shown_as_it_is(opened: Opened) -> None:
    opened.go("runs/broken")
    shown = HOSTILE.replace("\u202e", "\ufffd")
    assert shown in opened.text("#why")
    opened.page.click("#why summary")
    assert shown in opened.text("#why pre")
    opened.go("models/net@2")
    assert shown in opened.text("#about")
    opened.page.click("#card summary")
    opened.page.wait_for_selector("#card h3")
    assert "net@2" in opened.text("#card")
    opened.go("studies/digits")
    assert "</script><img src=x onerror=alert(1)>" in opened.text("#trials thead")
    assert opened.page.title() != "taken"
    assert opened.said == []


def test_the_numbers_of_a_sweep_are_the_studys(opened: Opened) -> None:
    summary = study_summary(project_of(opened).studies / "digits")
    assert summary.best is not None
    opened.go("studies/digits")
    assert float(opened.text("#best dd")) == pytest.approx(summary.best.value, rel=1e-4)
    assert opened.text("#done dd") == f"40 of {summary.planned}"
    assert opened.page.locator("#history circle.dot").count() > 30
    assert opened.page.locator("#parameters .parallel path:not(.axis)").count() == summary.counts["complete"]
    opened.page.select_option("#trials select", label="failed")
    opened.page.wait_for_selector("#trials .chip[data-state=failed]")
    opened.page.wait_for_selector("#trials .chip[data-state=complete]", state="detached")
    with opened.context.expect_page() as new:
        opened.page.click("text=Full report")
    new.value.wait_for_selector("html[data-ready=yes]")
    assert new.value.locator("#trials").count() == 1
    assert opened.said == []


def test_a_run_that_goes_on_is_drawn_as_it_goes(opened: Opened) -> None:
    run = made_run(project_of(opened), "going", State.RUNNING)
    with run.lease():
        opened.go("runs/going")
        opened.page.wait_for_selector("#state .chip[data-state=RUNNING]")
        assert opened.page.locator("#curves .curve").count() >= 4
        before = opened.page.locator("#curves .curve").first.get_attribute("d")
        opened.page.click("#about summary")
        opened.page.focus("#about summary")
        run.append({"kind": "valid", "step": 60, "loss": 0.2, "accuracy": 0.9})
        run.update(step=60, metrics={"loss": 0.2})
        opened.page.wait_for_selector(".tile:has(dt:text-is('Step')) dd:text-is('60')")
        assert opened.page.locator("#curves .curve").first.get_attribute("d") != before
        assert (
            opened.page.locator("#about details").get_attribute("open") is not None
        )  # what was open stays open
        run.update(state=State.COMPLETED, ended=time.time())
    opened.page.wait_for_selector("#state .chip[data-state=COMPLETED]")
    assert opened.said == []


def test_replicas_come_with_their_latency_and_go(opened: Opened) -> None:
    folder = made_deployment(project_of(opened), "live")
    status = read_json(folder / "gateway/status.json")
    opened.go("deployments/live")
    rows = opened.page.locator("#replicas tbody tr")
    assert [rows.nth(place).inner_text().split("\t")[0] for place in range(2)] == ["r-0001", "r-0002"]
    assert "4.25 ms" in rows.nth(0).inner_text()
    assert rows.nth(1).locator(".over").count() == 1  # above the goal of 10 ms
    assert "canary" in rows.nth(1).inner_text()
    assert "90 %" in opened.text("#split")
    for place in range(3):
        replace_json(
            folder / "gateway/status.json",
            {**status, "time": time.time(), "p99_ms": 20.0 + place, "replicas": status["replicas"][:1]},
        )
        opened.page.wait_for_selector(f"#p99 dd:has-text('{20 + place} ms')")
    assert opened.page.locator("#replicas tbody tr").count() == 1
    assert opened.page.locator("#course .curve").count() == 3
    append_record(folder / "events.jsonl", {"kind": "scaled", "time": time.time(), "why": HOSTILE})
    opened.page.wait_for_selector("#events td:text-is('scaled')")
    replace_json(folder / "endpoint.json", {"format": 1, "generation": 3, "url": "http://x", "state": "ended"})
    opened.page.wait_for_selector("#state .chip[data-state=ENDED]")
    assert opened.said == []


def test_models_are_searched_and_their_lineage_leads_on(opened: Opened) -> None:
    opened.go("models")
    opened.page.fill("input[name=q]", "accuracy > 0.9")
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_selector("#models .note:text-is('1 version')")
    assert opened.page.locator("#models li a").all_inner_texts() == ["net@2"]
    opened.page.fill("input[name=q]", "accuracy >> 0.9")
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_selector("#error .problem")
    opened.page.go_back()
    opened.page.wait_for_selector("#models li a")
    opened.page.click("#models li a")
    opened.page.wait_for_selector("#lineage .root")
    assert {"version", "alias", "deployment", "run"} <= set(
        opened.page.locator("#lineage .node").evaluate_all("all => all.map(one => one.classList[1])")
    )
    opened.page.click("#lineage a:has(.version)")
    opened.page.wait_for_selector("h1:text-is('net@1')")


def test_a_damaged_file_is_told_where_it_belongs(opened: Opened) -> None:
    bad = made_run(project_of(opened), "bad", State.COMPLETED)
    (bad.path / "status.json").write_text("{")
    opened.go("runs/bad")
    assert opened.text("#state dd") == "unknown"
    assert "is not valid JSON" in opened.text("#why .problem")
    opened.go("runs")
    opened.page.wait_for_selector("li:has(a:text-is('bad')) .chip[data-state=damaged]")
    opened.go("runs/none")
    assert "there is no run 'none'" in opened.text("#error")


def test_it_is_used_by_the_keyboard(opened: Opened) -> None:
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.className") == "skip"
    for _ in range(4):  # the button for light and dark, and three views
        opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.textContent") == "Sweeps"
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_selector("h1.view:text-is('Sweeps')")
    assert opened.page.evaluate("document.activeElement.id") == "main"
    assert opened.page.locator("nav [aria-current=page]").count() == 1


def test_who_is_on_a_link_stays_there_when_it_is_drawn_again(opened: Opened, tmp_path: Path) -> None:
    opened.go("models")
    opened.page.focus("#models a:text-is('net@1')")
    made_version(project_of(opened), "another", 0.1, tmp_path)
    opened.page.wait_for_selector("#models a:text-is('another@1')", timeout=15000)
    assert opened.page.evaluate("document.activeElement.textContent") == "net@1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_and_all_text_stands_out(
    browser: Any, shared: Client, scheme: str, width: int
) -> None:
    opened = Opened(browser, shared, viewport={"width": width, "height": 844}, color_scheme=scheme)
    weak = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")
    for view in VIEWS:
        opened.go(view)
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
        assert json.loads(opened.page.evaluate(weak)) == [], view
    opened.context.close()


def test_a_dashboard_that_is_gone_is_told(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with served(made_project(tmp_path / "made")) as client:
        opened = Opened(browser, client)
        assert opened.text("#live") == "live"
        client.access._session = "another"  # as a new start has it
        opened.page.wait_for_selector("#error .problem")
        assert "started anew" in opened.text("#error")
    opened.page.wait_for_selector("#live[data-how=lost]", timeout=30000)
    opened.context.close()
