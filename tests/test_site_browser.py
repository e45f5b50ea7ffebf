"""The catalog's pages in a browser, opened as files: no errors, no requests, and what a reader does works."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from axe_playwright_python.sync_playwright import Axe

from dualcalc import catalog, serve

from .test_site import EVIL, HOSTILE, REFERENCES
from .tiers import thinned

pytestmark = pytest.mark.browser
REQUIRED = "DUALCALC_REQUIRE_BROWSER"  # set where the absence of a browser is a failure
WIDTHS = (1200, 390)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    absent = pytest.fail if os.environ.get(REQUIRED) else pytest.skip
    try:
        from playwright import sync_api as playwright
    except ModuleNotFoundError:
        absent("playwright is missing: pip install playwright")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        absent("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as running:
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        opened = running.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The whole catalog, and a hostile entry; whichever worker comes first builds it for all of them."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "pages"
    try:
        shared.mkdir()
    except FileExistsError:
        while not (shared / "site").exists():
            assert not (shared / "failed").exists(), "see what the other worker says"
            time.sleep(0.5)
    else:
        try:
            built(tmp_path_factory.mktemp("catalog"), shared / "partial").rename(shared / "site")
        except BaseException:
            (shared / "failed").touch()
            raise
    return shared / "site"


def built(more, out):
    (more / "hostile.yaml").write_text(HOSTILE)
    (more / "references.yaml").write_text(REFERENCES)
    command = [sys.executable, "-m", "dualcalc", "catalog", "site", "--catalog", more, "--out", out, "--json"]
    made = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout)
    assert made["size"] <= 25 * 2**20  # acceptance E2
    return out


@pytest.fixture
def opened(browser, folder):
    """open(name, **options of the context) -> page; in the end nothing was wrong and nothing was asked of a network."""
    wrong, contexts = [], []

    def open(name, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(r.url))
        page.goto((folder / f"{name}.html").as_uri())
        page.wait_for_timeout(100)
        return page

    yield open
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize("width", thinned(WIDTHS, {1200}))
def test_every_page(opened, folder, width):
    """Acceptance E1: no error, no request elsewhere (both by `opened`), its plots, and nothing that sticks out."""
    page = opened("index", viewport={"width": width, "height": 800})
    paths = sorted(folder.glob("*.html"))
    assert len(paths) == len(catalog.load()) + 2
    for path in paths:
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        assert page.locator("h1").is_visible() and page.locator("#theme").inner_text() == "Dark theme"
        facts = json.loads(path.with_suffix(".json").read_text())
        drawn = 0 if path.stem == "index" else sum(facts[part] is not None for part in ("curve", "dual"))
        assert page.locator("canvas").count() == drawn, path.name


def test_hostile_text_is_shown(opened):
    page = opened("hostile")
    assert page.locator("h1").inner_text() == EVIL
    assert page.locator("img, script:not([src]):not([type='application/json'])").count() == 0
    assert EVIL in opened("index").locator("[data-id=hostile]").inner_text()


def test_search_and_filters(opened, folder):
    page = opened("index")
    shown, all = page.locator("#entries > li:visible"), len(catalog.load()) + 1
    assert shown.count() == all
    page.keyboard.press("/")
    page.keyboard.type("gaussian error linear")
    assert shown.count() == 1 and shown.get_attribute("data-id") == "gelu"
    page.locator("#search").fill("")
    page.get_by_label("Homogeneous").check()
    listed = json.loads((folder / "index.json").read_text())
    homogeneous = [entry["id"] for entry in listed if entry["properties"]["homogeneous"]]
    assert [li.get_attribute("data-id") for li in shown.all()] == homogeneous and "gelu" not in homogeneous
    assert page.locator("#count").inner_text() == f"{len(homogeneous)} of {all}"
    page.get_by_label("Bounded").check()
    assert [li.get_attribute("data-id") for li in shown.all()] == ["sign", "step"]
    page.locator("#search").fill("nothing of the kind")
    assert page.locator("#none").is_visible()


def test_readout_and_sliders(opened):
    page = opened("relu")
    readout = page.locator("#readout")
    page.locator("#c").fill("45")
    assert "angle 90°: k = 0.159155, kdot = 0.25" in readout.inner_text()
    page.locator("#q11").fill("5")  # q11 = 4
    assert "k = 0.31831, kdot = 0.25" in readout.inner_text()
    page.locator("#q22").focus()
    page.keyboard.press("End")  # q22 = 10
    assert "k = 1.00658" in readout.inner_text()
    box = page.locator("#plot-dual .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 40)
    assert "angle 120°" in readout.inner_text()


def test_permalink_keeps_the_sliders(opened):
    page = opened("relu")
    page.locator("#q11").fill("5")
    page.locator("#weight").fill("20")
    said = page.locator("#readout").inner_text()
    page.goto(page.locator("#permalink").evaluate("link => link.href"))
    page.reload()
    assert page.locator("#readout").inner_text() == said and page.locator("#out-weight").inner_text() == "1.00"


def test_phase(opened):
    page = opened("relu")
    page.locator("#weight").fill("20")  # W_std = 1
    page.locator("#bias").fill("10")  # b_std = 0.5
    assert page.locator("#phase-readout").inner_text() == "q* = 0.5, χ₁ = 0.5: ordered, depth scale 1.44 layers"
    page.locator("#weight").focus()
    page.keyboard.press("End")
    assert "no fixed point" in page.locator("#phase-readout").inner_text()


def test_tabs_and_copy(opened):
    page = opened("gelu")
    assert page.locator("[role=tabpanel]:visible").count() == 1
    page.get_by_role("tab", name="LaTeX").focus()
    page.keyboard.press("ArrowRight")
    panel = page.locator("[role=tabpanel]:visible")
    assert panel.get_attribute("data-name") == "SymPy" and "from sympy import" in panel.inner_text()
    panel.locator(".copy").click()
    page.wait_for_timeout(100)
    assert page.locator("#copied").inner_text() == "Copied"


def barriers(page):
    """What axe finds serious; without what it would fetch for its own use."""
    found = Axe().run(page, options={"preload": False}).response["violations"]
    return [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]


AXE = [(name, scheme) for name in ("index", "hostile", *catalog.load()) for scheme in ("light", "dark")]
FEW = [
    ("index", "light"),
    ("index", "dark"),
    ("gelu", "light"),
    ("abrelu", "dark"),
    ("hostile", "light"),
    ("mish", "dark"),
]


@pytest.mark.parametrize("name, scheme", thinned(AXE, set(AXE) - set(FEW)))
def test_accessibility(opened, name, scheme):
    assert barriers(opened(name, color_scheme=scheme)) == []


@pytest.mark.parametrize("scheme, first", [("light", "Dark theme"), ("dark", "Light theme")])
def test_theme(opened, scheme, first):
    page = opened("relu", color_scheme=scheme)
    button = page.locator("#theme")
    back = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(back)
    assert button.inner_text() == first
    button.click()
    assert button.inner_text() != first and page.evaluate(back) != before
    page.reload()
    assert page.evaluate(back) != before  # it is remembered
    assert page.locator("#plot-dual canvas").count() == 1


def test_keyboard_reaches_the_content(opened):
    page = opened("relu")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_formulas_and_code_need_no_script(browser, folder):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((folder / "relu.html").as_uri())
    assert page.locator("math").count() > 4 and page.locator("pre:visible").count() == 7
    context.close()


def test_print(opened):
    page = opened("relu", color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#theme").is_visible() and page.locator("pre:visible").count() == 5  # all but JAX


def test_live(browser):
    """Type, see the page, mistype, see why; in a window that is open the same way on a phone."""
    with serve.Server(catalog.load()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        context = browser.new_context(viewport={"width": 390, "height": 800})
        page, wrong = context.new_page(), []
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" and "422" not in m.text else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((server.url, "data:")) else wrong.append(r.url))
        page.goto(server.url)
        page.get_by_role("link", name="Try an activation").click()
        page.locator("#expr:focus").wait_for()
        page.keyboard.type("t*Phi(A*t)")
        page.keyboard.press("Enter")
        page.get_by_role("alert").wait_for()
        assert "give one, as A=1" in page.get_by_role("alert").inner_text()
        page.get_by_label("Parameters").fill("A=2")
        page.get_by_role("button", name="Derive").click()
        page.locator("#plot-dual canvas").wait_for()
        assert "k = " in page.locator("#readout").inner_text() and page.locator("#expr").input_value() == "t*Phi(A*t)"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert barriers(page) == []
        page.locator("#permalink").click()
        assert page.locator("#expr").input_value() == "t*Phi(A*t)" and page.locator("#plot-dual").count() == 0
        context.close()
        server.shutdown()
    assert wrong == []
