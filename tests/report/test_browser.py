"""The page of a report in headless Chromium: clicks, keys, phone width, nothing asked for, nothing on the console.

It needs the package playwright and a Chromium of the system: apt-get install chromium.
"""

import shutil

import numpy as np
import pytest

import xnn
from xnn import callbacks, layers, losses, optimizers
from xnn.report import page_of
from xnn.report.of_trainer import run_of_trainer

api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")]

HOSTILE = "</script><img src=x onerror=alert(1)>'\"&\u2028"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (120, 64)).astype(np.uint8), np.arange(120) % 4
    runs = []
    for name in ("one", HOSTILE):
        watcher = callbacks.Checkpoint(folder / f"ck{len(runs)}", keep=9)
        model = xnn.Sequential(
            layers.Rescale(1 / 255), layers.Dense(64, 9), layers.ReLU(), layers.Dense(9, 4), seed=0
        )
        trainer = xnn.Trainer(model, losses.SoftmaxCrossEntropy(), optimizers.Adam(0.01), callbacks=[watcher])
        trainer.fit((x, y), validation=(x, y), epochs=4, progress=False)
        runs.append(run_of_trainer(trainer, (x, y), name))
        runs[-1].labels = ("a", "b", "c", HOSTILE)
    (folder / "r.html").write_text(page_of(runs), encoding="utf-8")
    return folder / "r.html"


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser, path):
    """The page; at the end nothing was asked for but the file itself, and nothing was said on the console."""
    asked, said = [], []
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    tab.goto(path.as_uri())
    yield tab
    tab.close()
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert said == []


def test_a_click_on_a_cell_shows_its_samples(page):
    cells = page.locator("table.matrix button:visible")
    assert cells.count() == 16
    cell = page.get_by_role("button", name="true a, predicted a:").first
    count = int(cell.inner_text().replace("·", "0"))
    cell.click()
    assert cell.get_attribute("aria-pressed") == "true"
    assert page.locator("#cell-0 li").count() == min(12, count)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert "True a, predicted b" in page.locator("#cell-0 h3").inner_text()
    assert page.locator("#cell-0 img").count() == page.locator("#cell-0 li").count()


def test_one_cursor_for_all_curves_and_smoothing(page):
    labels = lambda: [svg.get_attribute("aria-label") for svg in page.locator("#curves ~ * svg").all()]  # noqa: E731
    assert all("at epoch 4" in label for label in labels())
    page.get_by_role("slider", name="Epoch").focus()
    page.keyboard.press("Home")
    assert len(labels()) > 1
    assert all("at epoch 1" in label for label in labels())
    box = page.locator("#curves ~ * svg").last.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] / 2)
    assert all("at epoch 4" in label for label in labels())
    before = labels()
    page.get_by_role("slider", name="Smoothing").focus()
    page.keyboard.press("End")
    assert labels() != before


def test_the_scrubber_moves_through_the_checkpoints(page):
    slider = page.get_by_label("Checkpoint").first
    last = page.locator("img.first").first.get_attribute("src")
    slider.focus()
    page.keyboard.press("Home")
    assert "epoch 1" in slider.get_attribute("aria-valuetext")
    assert page.locator("img.first").first.get_attribute("src") != last
    page.get_by_label("Histograms of").first.select_option("gradients")
    assert page.get_by_role("heading", name="Histograms of gradients").count() == 1


def test_texts_of_files_are_texts(page):
    assert page.locator("img[src=x]").count() == 0
    assert HOSTILE.partition("\u2028")[0] in page.locator("summary").nth(1).text_content()


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_have_contrast(page, scheme):
    page.emulate_media(color_scheme=scheme)
    colours = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    back, text = (sum(map(int, colour[4:-1].split(","))) for colour in colours)
    assert abs(back - text) > 500
    assert (back > text) == (scheme == "light")
