"""The Prefect UI as a person meets it, in a headless Chromium that reaches nothing but this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from mlflow.tracking import MlflowClient
from playwright.sync_api import Browser, Locator, Page, Request, expect, sync_playwright
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

from modelyard.revisions import ModelState, latest_revision
from modelyard.storage import Store
from tasks.results import LifecycleResult
from tests.browsers import chromium
from tests.conftest import Installation
from tests.e2e.driving import OWN, RUN_SECONDS, result_of

pytestmark = pytest.mark.browser

FLAGS = (
    "--no-sandbox",  # CI is root in a container, where Chromium cannot make its own sandbox
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # a page that needs the internet fails here
)
PAGE_MILLISECONDS = 20_000
RUN_MILLISECONDS = RUN_SECONDS * 1000
ENDED = re.compile(r"^(Completed|Failed|Crashed|Cancelled|Refused)$")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium()
    expect.set_options(timeout=PAGE_MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def requested(page: Page) -> list[str]:
    """Every address the page has asked for, in order."""
    urls: list[str] = []

    def note(request: Request) -> None:
        urls.append(request.url)

    page.on("request", note)
    return urls


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.set_default_timeout(PAGE_MILLISECONDS)
    yield page
    page.close()


@pytest.fixture
def form(stack: Installation, page: Page, requested: list[str]) -> Page:
    """The deployment's page, then Run > Custom run."""
    deployment = httpx.get(f"{stack.settings.api_url}/deployments/name/lifecycle/digits").raise_for_status().json()
    page.goto(f"{stack.settings.api_url.removesuffix('/api')}/deployments/deployment/{deployment['id']}")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    field(page, "Preset").wait_for()
    assert outside(requested) == []
    return page


def test_the_form_explains_its_fields(stack: Installation, form: Page):
    """Every parameter of the deployment is there in its order, with a label and a help text of its own."""
    deployment = httpx.get(f"{stack.settings.api_url}/deployments/name/lifecycle/digits").raise_for_status().json()
    described = deployment["parameter_openapi_schema"]["properties"]
    labels = form.locator("form .schema-form-property__label").all_inner_texts()
    assert [label.removesuffix(" (Optional)") for label in labels] == [
        "Preset", "Dataset URI", "Max epochs", "Ranks", "Device", "Min score", "Overrides"
    ]  # fmt: skip
    shown = form.locator("form .schema-form-property__description").all_inner_texts()
    assert [text.strip() for text in shown] == [parameter["description"] for parameter in described.values()]


def test_a_bad_value_is_refused_on_the_form(stack: Installation, form: Page):
    """A value out of bounds makes no flow run; the message names the field and the bound."""
    name_run(form, "browser-refused")
    field(form, "Ranks").fill("1000")
    form.get_by_role("button", name="Submit").click()
    expect(form.get_by_text("'ranks'").first).to_contain_text("1000 is greater than the maximum of 64")
    assert num_runs(stack, "browser-refused") == 0


def test_an_unchanged_lifecycle_started_from_the_form_finds_everything(
    stack: Installation, last_run: dict, form: Page, requested: list[str], prefect_client: SyncPrefectClient
):
    """Filled in, submitted and watched in the UI: one run, which completes, with its five stages and its report. All
    the while the page asks nothing of another machine. Nothing is computed again, no version is added, and the stages'
    MLflow runs name those they were taken from."""
    before = served(stack)
    name_run(form, "browser-started")
    # What another run computed already.
    field(form, "Max epochs").fill("60")
    field(form, "Ranks").fill("2")
    field(form, "Min score").fill("0.93")
    for number, override in enumerate(OWN):
        form.get_by_role("button", name="Add item").click()
        expect(field(form, "Overrides")).to_have_count(number + 1)
        field(form, "Overrides").nth(number).fill(override)
    assert [item.input_value() for item in field(form, "Overrides").all()] == OWN
    for _ in range(3):  # a server on SQLite may be busy and say 503: a person clicks again
        with form.expect_response("**/create_flow_run") as answer:
            form.get_by_role("button", name="Submit").click()
        if answer.value.status != 503:
            break
    assert answer.value.ok, answer.value.text()
    form.get_by_role("link", name="browser-started").first.click(timeout=60_000)  # the page asks now and then
    form.wait_for_url("**/runs/flow-run/*")
    form.reload()  # else the states of other runs linger from the page before
    expect(form.get_by_text("browser-started", exact=True).first).to_be_visible()
    ended = form.get_by_text(ENDED).first
    ended.wait_for(timeout=RUN_MILLISECONDS)
    expect(ended).to_have_text("Completed")

    form.get_by_text("Subflow Runs", exact=True).click()
    for stage in ("preprocess", "train", "compress", "evaluate", "rollout"):
        expect(form.get_by_text(stage, exact=True).first).to_be_visible()
    form.get_by_text("Artifacts", exact=True).last.click()
    expect(form.get_by_text("lifecycle-report").first).to_be_visible()
    assert num_runs(stack, "browser-started") == 1
    assert outside(requested) == []

    (run,) = prefect_client.read_flow_runs(
        flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=["browser-started"]))
    )
    result = LifecycleResult.model_validate(result_of(stack, run))
    assert all(stage.reused for stage in result.stages[:-1])
    assert not result.stages[-1].release.changed
    assert result.model_version == last_run["model_version"]
    assert served(stack) == before
    stage = MlflowClient().get_run(result.stages[1].mlflow_run_id)
    assert stage.data.tags["reused_from"] == last_run["stages"][1]["mlflow_run_id"]


def served(stack: Installation) -> ModelState:
    """What the newest revision says of the digits; other models have a life of their own."""
    revision = latest_revision(Store(stack.settings), stack.settings.endpoint_name)
    assert revision
    return revision.models["digits"]


def field(page: Page, label: str) -> Locator:
    """Inputs below a label; Prefect's form does not tie the two together."""
    text = page.get_by_text(f"{label} (Optional)", exact=True)
    return page.locator("form .schema-form-property", has=text).locator("input, textarea")


def name_run(page: Page, name: str) -> None:
    page.locator("form input").first.fill(name)


def num_runs(stack: Installation, name: str) -> int:
    runs = {"flow_runs": {"name": {"any_": [name]}}}
    return httpx.post(f"{stack.settings.api_url}/flow_runs/count", json=runs).raise_for_status().json()


def outside(urls: list[str]) -> list[str]:
    """Addresses on another machine; `data:` and `blob:` have no host."""
    return [url for url in urls if urlsplit(url).hostname not in {None, "127.0.0.1"}]
