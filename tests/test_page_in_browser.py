"""The page as a real Chromium shows it, from a file: on a desktop, on a phone and in dark mode."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from test_report import make_params, make_results

from edadm.report import page

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
VIEWS = {
    "desktop": {"viewport": DESKTOP},
    "phone": {"viewport": PHONE, "has_touch": True, "is_mobile": True},
    "dark": {"viewport": DESKTOP, "color_scheme": "dark"},
    "dark-phone": {"viewport": PHONE, "has_touch": True, "is_mobile": True, "color_scheme": "dark"},
}
# of each text with a colour of its own, the least contrast (WCAG 2) against the page's ground
CONTRAST = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255);
  const linear = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const share = [0.2126, 0.7152, 0.0722];
  const light = (colour) => parse(colour).reduce((sum, value, k) => sum + linear(value) * share[k], 0);
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll("p, th, td, dt, dd, a, h1, h2, h3, figcaption, summary, code")];
  return Math.min(...texts.map((text) => light(getComputedStyle(text).color))
    .map((own) => (Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05)));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium")
    assert found, "no chromium on the PATH: `make debian-packages` installs it (Debian), else install it by hand"
    with sync_playwright() as playwright:
        # its sandbox refuses to run for root, and the page is our own
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    make_results(folder / "results")
    page.write(make_params(), folder / "results", folder / "report.html")
    return (folder / "report.html").as_uri()


class Visit:
    """The page opened in one view; every complaint and every request is kept."""

    def __init__(self, browser: Browser, address: str, view: str) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page: Page = browser.new_context(**VIEWS[view]).new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address, wait_until="load")


@pytest.fixture(params=VIEWS)
def visit(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Visit]:
    visit = Visit(browser, address, request.param)
    yield visit
    visit.page.context.close()


@pytest.fixture
def desktop(browser: Browser, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address, "desktop")
    yield visit
    visit.page.context.close()


def test_it_loads_whole_and_alone(visit: Visit, address: str) -> None:
    images = visit.page.eval_on_selector_all("img", "all => all.map((image) => [image.naturalWidth, image.alt])")
    assert len(images) == 70
    assert all(width > 0 and alt for width, alt in images)
    assert visit.page.locator("svg").count() > 0
    assert [url for url in visit.requests if not url.startswith("data:")] == [address]
    assert visit.complaints == []


def test_nothing_is_wider_than_the_window(visit: Visit) -> None:
    found = visit.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert found[0] <= found[1]


def test_texts_stand_out(visit: Visit) -> None:
    assert visit.page.evaluate(CONTRAST) >= 4.5


def test_the_ground_follows_the_scheme(browser: Browser, address: str) -> None:
    grounds = {}
    for view in ("desktop", "dark"):
        visit = Visit(browser, address, view)
        grounds[view] = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        visit.page.context.close()
    assert grounds == {"desktop": "rgb(252, 252, 251)", "dark": "rgb(19, 20, 23)"}


def test_a_seed_large_in_all_variants_by_keyboard_alone(desktop: Visit) -> None:
    shown = desktop.page.locator("dialog[open]")
    desktop.page.locator("button.sample").nth(2).focus()
    desktop.page.keyboard.press("Enter")
    assert shown.locator("h2").text_content() == "Seed 100002"
    assert shown.locator("figcaption").all_text_contents() == ["fp32", "w8a8", "w4a8", "w4a8-rtn"]
    alts = shown.locator("img").evaluate_all("all => all.map((image) => image.alt)")
    assert alts[:3] == ["fp32, seed 100002", "w8a8, seed 100002", "w8a8 minus fp32, seed 100002"]
    desktop.page.keyboard.press("ArrowRight")
    assert shown.locator("h2").text_content() == "Seed 100003"
    desktop.page.keyboard.press("Escape")
    assert shown.count() == 0
    assert desktop.complaints == []
