"""examples/progress_bar.html in a real browser, while a document is processed."""

import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from browser import INSTALL_SECONDS, OPTIONS, find_chromium
from edge_servers import START_SECONDS
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from playwright.sync_api import Browser, Page, expect, sync_playwright

from processors_v2._local.process import wait_until
from processors_v2.api import create_router
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker
from tests.python.conftest import connected

# The browser may have to be installed first.
pytestmark = pytest.mark.timeout(3 * INSTALL_SECONDS + 120)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHOWN = [name.replace("_", " ") for name in StageTracker.STAGES]

# Every value that a bar ever has, by the name that it has for those who cannot see it.
WATCH_BARS = """
window.bars = {__proto__: null};
new MutationObserver((records) => {
    for (const {target} of records.filter(({target}) => target.localName === "progress")) {
        (window.bars[target.ariaLabel ?? "document"] ??= []).push(target.getAttribute("value"));
    }
}).observe(document, {attributes: true, attributeFilter: ["value"], subtree: true});
"""

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def site(tracker: StageTracker) -> Iterator[str]:
    """An application of FastAPI that serves the page, and beside it the status and its events."""
    app = FastAPI()
    app.include_router(create_router(tracker, look_every=0.05))
    app.mount("/", StaticFiles(directory=EXAMPLES))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert wait_until(lambda: server.started, START_SECONDS)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = server.force_exit = True
    thread.join()


@pytest.fixture(scope="module")
def chromium(site: str) -> Iterator[Browser]:
    """The browser, which is gone before the site is."""
    assert site
    path = find_chromium()
    # Not for longer than this module: while it runs, nobody else in this thread can run an event loop.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Browser, site: str) -> Iterator[Open]:
    """Open the page for a document; at the end of the test no script of it may have failed."""
    contexts, errors = [], []

    def open_page(document: str, url: str = "", token: str = "", **options: Any) -> Page:
        context = chromium.new_context(viewport={"width": 800, "height": 600}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: errors.append(error.message))
        page.add_init_script(WATCH_BARS)
        # Its time passes as usual, and faster where a test says so.
        page.clock.install()
        page.goto(
            f"{site}/progress_bar.html?document={document}&url={url}" + (f"#access_token={token}" if token else "")
        )
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def row(page: Page, stage: str) -> Any:
    """The row of a stage."""
    return page.get_by_role("listitem").filter(has_text=stage.replace("_", " "))


def asks_no_more(page: Page) -> bool:
    """Whether in the next ten seconds of the page nobody is asked anything, but by this function."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.run_for(10_000)
    page.evaluate("fetch('#the-end')")
    return len(asked) == 1


def test_the_page_is_short() -> None:
    """It is an example to copy from: less than 60 lines."""
    assert len((EXAMPLES / "progress_bar.html").read_text(encoding="utf-8").splitlines()) < 60


def test_it_follows_a_document_to_its_end(open_page: Open, tracker: StageTracker, document: str) -> None:
    """Bars grow and never go back in a run, stages and errors are told in words, and the end is told."""
    page = open_page(document)
    headline, words = page.get_by_role("heading"), page.locator("#words")
    expect(headline).to_have_text("Document pending")
    expect(page.get_by_role("listitem").locator("span")).to_have_text(SHOWN)

    tracker.complete_stage(document, "upload")
    tracker.start_stage(document, "text_extraction")
    tracker.update_progress(document, "text_extraction", 45.5)
    expect(row(page, "upload")).to_contain_text("✓ done")
    expect(row(page, "text_extraction")).to_contain_text("45.5 %")
    expect(words).to_have_text("12.5 %, current stage: text extraction")
    expect(page).to_have_title("Document processing")

    tracker.update_progress(document, "text_extraction", 20)
    tracker.skip_stage(document, "image_processing", "No images found in PDF")
    expect(row(page, "image_processing")).to_contain_text("skipped")
    expect(row(page, "text_extraction")).to_contain_text("45.5 %")

    tracker.start_stage(document, "storage")
    tracker.fail_stage(document, "storage", "R2 is <b>away</b>")
    expect(headline).to_have_text("Document failed")
    expect(row(page, "storage")).to_contain_text("✗ failed")
    expect(row(page, "storage").locator("small")).to_have_text("R2 is <b>away</b>")

    tracker.retry_stage(document, "storage")
    for stage in StageTracker.STAGES:
        if stage != "image_processing":
            tracker.complete_stage(document, stage)
    expect(headline).to_have_text("Document completed")
    expect(words).to_have_text("100 %, all stages finished")
    expect(page.locator("small")).to_have_text([""] * len(SHOWN))

    bars = {name: [float(value) for value in values] for name, values in page.evaluate("window.bars").items()}
    assert set(bars) == {"document", *SHOWN}
    assert all(values == sorted(values) for values in bars.values()), bars
    assert all(values[-1] == 100 for values in bars.values()), bars


def test_a_new_run_begins_at_its_own_progress(open_page: Open, tracker: StageTracker, document: str) -> None:
    """What an earlier run had reached is not shown for the next one."""
    page = open_page(document)
    tracker.start_stage(document, "upload")
    tracker.update_progress(document, "upload", 80)
    expect(row(page, "upload")).to_contain_text("80 %")
    tracker.fail_stage(document, "upload", "cut off")
    tracker.start_stage(document, "upload")
    tracker.update_progress(document, "upload", 5)
    expect(row(page, "upload")).to_contain_text("5 %")
    expect(row(page, "upload").get_by_role("progressbar")).to_have_js_property("value", 5)


def test_it_survives_a_reload(open_page: Open, tracker: StageTracker, document: str) -> None:
    """What it shows is where the document stands, not what the page has seen."""
    tracker.complete_stage(document, "upload")
    tracker.fail_stage(document, "text_extraction", "OCR engine timeout")
    page = open_page(document)
    expect(row(page, "text_extraction")).to_contain_text("OCR engine timeout")
    before = page.locator("body").aria_snapshot()
    page.reload()
    expect(row(page, "text_extraction")).to_contain_text("OCR engine timeout")
    assert page.locator("body").aria_snapshot() == before


@pytest.fixture
def special(local: LocalSupabase) -> Iterator[str]:
    """A stage with a name that every object of JavaScript knows, until the end of the test."""
    with connected(local) as db:
        db.one("select krai_core.register_stage('constructor')")
        yield "constructor"
        db.drop_stage("constructor")


def test_a_stage_may_have_a_name_of_javascripts(
    open_page: Open, tracker: StageTracker, special: str, document: str
) -> None:
    """A stage named constructor is a stage like any other, and the others are shown as ever."""
    tracker.start_stage(document, special)
    tracker.update_progress(document, special, 45.5)
    page = open_page(document)
    expect(row(page, special)).to_contain_text("45.5 %")
    tracker.complete_stage(document, special)
    expect(row(page, special)).to_contain_text("✓ done")
    expect(page.get_by_role("listitem").locator("span")).to_have_text([*SHOWN, special])


def test_any_name_of_a_stage_is_only_a_name(
    open_page: Open, functions: dict[str, str], local: LocalSupabase, document: str
) -> None:
    """Whatever a server tells, each stage has a row with its own name and progress, and no name is more than that."""
    names = ["__proto__", "constructor", "prototype", "toString", "hasOwnProperty", "length", "name", "0", "then"]
    told = {name: {"status": "processing", "started_at": None, "progress": 7, "error": None} for name in names}
    told["upload"] = {"status": "constructor", "started_at": "x", "progress": 7, "error": None}
    answer = {"status": "processing", "current_stage": "__proto__", "progress": 7, "stage_status": told}
    page = open_page(document, url=functions["status"], token=local.key())
    expect(page.get_by_role("listitem")).to_have_count(len(SHOWN))
    page.route("**/status/**", lambda route: route.fulfill(json=answer, headers={"Access-Control-Allow-Origin": "*"}))
    page.reload()
    expect(page.locator("#words")).to_contain_text("proto")
    for name in [*names, "upload"]:
        bar = page.get_by_role("progressbar", name=name.strip("_"), exact=True)
        expect(bar).to_have_js_property("value", 7)
    expect(page.get_by_role("listitem").locator("b").filter(has_text="7 %")).to_have_count(len(names) + 1)


def test_it_asks_a_server_without_events(
    open_page: Open, functions: dict[str, str], local: LocalSupabase, tracker: StageTracker, document: str
) -> None:
    """With a token it asks every second, also at another site such as the Edge Functions, and ends with the document.

    The token is in no address, and the stages are in the order of the pipeline, which JSON of the database is not.
    """
    page = open_page(document, url=functions["status"], token=local.key())
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    expect(page.get_by_role("listitem").locator("span")).to_have_text(SHOWN)
    for stage in StageTracker.STAGES:
        tracker.complete_stage(document, stage)
    expect(page.get_by_role("heading")).to_have_text("Document completed")
    assert asked
    assert set(asked) == {f"{functions['status']}/status/{document}"}
    assert asks_no_more(page)


def test_a_refusal_is_told_in_the_words_of_the_server(open_page: Open) -> None:
    """An unknown document is told, and not asked for again."""
    unknown = str(uuid.uuid4())
    page = open_page(unknown)
    expect(page.get_by_role("alert")).to_have_text(f"there is no document {unknown}")
    expect(page.get_by_role("progressbar")).to_have_js_property("value", 0)
    assert asks_no_more(page)


def test_a_lost_connection_is_told_and_mended(
    open_page: Open, functions: dict[str, str], local: LocalSupabase, tracker: StageTracker, document: str
) -> None:
    """While nobody answers, the page keeps what it knows and says so; when somebody does again, it goes on."""
    page = open_page(document, url=functions["status"], token=local.key())
    trouble = page.get_by_role("alert")
    expect(page.get_by_role("heading")).to_have_text("Document pending")
    page.context.set_offline(True)
    tracker.complete_stage(document, "upload")
    expect(trouble).to_contain_text("No connection, trying again")
    expect(row(page, "upload")).to_contain_text("waiting")
    page.context.set_offline(False)
    expect(row(page, "upload")).to_contain_text("✓ done")
    expect(trouble).to_have_text("")


def test_it_is_readable_for_everybody(open_page: Open, tracker: StageTracker, document: str) -> None:
    """Every bar has a name and words beside it, and dark is dark."""
    tracker.fail_stage(document, "upload", "cut off")
    colours = []
    for scheme in ("light", "dark"):
        page = open_page(document, color_scheme=scheme)
        expect(row(page, "upload")).to_contain_text("cut off")
        for name in ("Document failed", *SHOWN):
            expect(page.get_by_role("progressbar", name=name, exact=True)).to_have_count(1)
        expect(page.get_by_role("listitem").locator("b")).to_have_text(["✗ failed", *["waiting"] * 7])
        colours.append(page.evaluate("getComputedStyle(document.body).color"))
    assert colours == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
