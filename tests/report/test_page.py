"""The page in a real browser: nothing is complained of or fetched, all is visible, and many samples are no burden."""

import json
import os
import random
import statistics
import time
from functools import cache
from pathlib import Path

import evaluations
import pytest
from evaluations import Problem

from skytrain import cli
from skytrain.prep.stage import Stage

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
NEEDED = "SKYTRAIN_NEEDS_CHROMIUM"
"""With this variable set, a missing browser is a failure."""
if not (os.path.exists(CHROMIUM) and os.path.exists(DRIVER)) and not os.environ.get(NEEDED):
    pytest.skip(f"needs {CHROMIUM} and {DRIVER} (packages chromium and chromium-driver)", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

QUIET = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
SAMPLES, SIZE = 5000, 20_000
LONGEST_TASK_MS = 2500
"""An idle machine with two cores takes less than a tenth of it; tests share theirs."""


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (*QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,1000"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.set_script_timeout(60)
        yield driver
    finally:
        driver.quit()


def show(browser, tmp_path: Path, *folders: Path) -> None:
    out = tmp_path / "report.html"
    parsed = cli.parse(["report", *map(str, folders), "--out", str(out)])
    assert parsed.run(parsed) == 0
    # The browser's own first page asks for things too.
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get(out.as_uri())


def complaints(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def requests(browser) -> list[str]:
    """Everything that was asked for over the page's life, but the page itself."""
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("data:", "file:///")) or not url.endswith((",", ".html"))]


def text(browser, name: str) -> str | None:
    script = "return document.querySelector(`#sample pre[data-text='${arguments[0]}']`)?.textContent ?? null"
    return browser.execute_script(script, name)


def opened(browser) -> str | None:
    return browser.execute_script("return document.getElementById('sample').dataset.opened ?? null")


def wait(browser, condition) -> None:
    WebDriverWait(browser, 20, poll_frequency=0.02).until(lambda _: condition())


def small(tmp_path: Path) -> list[Path]:
    verdicts = ["correct", "wrong", "truncated", "missing"]
    problems = [Problem(f"aime/{i:02d}", verdicts if i % 2 else ["correct"] * 4) for i in range(30)]
    return [
        evaluations.write(tmp_path / "a", "before", {"aime24": problems}, aime24={"title": "AIME 2024"}),
        evaluations.write(tmp_path / "b", "after", {"aime24": problems[:20]}, aime24={"warnings": ["a warning"]}),
        evaluations.write_training(tmp_path / "run"),
        prepared(tmp_path / "data"),
    ]


def prepared(folder: Path) -> Path:
    """A stage with more reasons and notes than others, and one that it has read."""
    for name, inputs in (("import", []), ("grade_of_a_long_name", [folder / "import.jsonl"])):
        with Stage("filter", inputs, folder / f"{name}.jsonl", {}) as stage:
            stage.account.read = 9
            for i in range(9):
                stage.drop({}, f"a_reason_of_some_length_{i}")
                stage.notes[f"a note that is as long as those of select or filter {i}"] = 1e6
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_all_is_visible_and_nothing_is_complained_of(browser, tmp_path, scheme, width):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    show(browser, tmp_path, *small(tmp_path))
    table = browser.find_element(By.ID, "score-table")
    assert "62.5" in table.text and "43.3" in table.text
    stages = browser.find_element(By.CSS_SELECTOR, "#data table")
    assert "grade_of_a_long_name" in stages.text and "a_reason_of_some_length_8 1" in stages.text
    figures = browser.find_elements(By.CSS_SELECTOR, "figure svg")
    assert len(figures) == 5  # four of the run, one of lengths
    across = browser.execute_script("return document.documentElement.clientWidth")
    for element in (table, stages, *figures, *browser.find_elements(By.CSS_SELECTOR, "figure path")):
        box = element.rect
        assert element.is_displayed() and box["width"] > 0 and box["height"] > 0
        assert box["x"] >= 0 and (element in (table, stages) or box["x"] + box["width"] <= across + 1)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= across
    paths = browser.find_elements(By.CSS_SELECTOR, "figure .line")
    colors = {line.value_of_css_property("color") for line in paths}
    ground = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert ground not in colors
    assert (sum(map(int, ground.split("(")[1].rstrip(")").split(",")[:3])) < 200) is (scheme == "dark")
    assert "a warning" in browser.find_element(By.CLASS_NAME, "warning").text
    assert complaints(browser) == []
    assert requests(browser) == []


PIECES = """
const broken = [];
for (const cell of document.querySelectorAll("thead th.other[scope=col]")) {
  const text = cell.firstChild, words = text.textContent.split(/(?<=-)/);
  let at = 0;
  for (const word of words) {
    const range = document.createRange();
    range.setStart(text, at);
    range.setEnd(text, at += word.length);
    const tops = new Set([...range.getClientRects()].map((box) => box.top));
    if (tops.size !== 1) broken.push(word);
  }
}
return broken;
"""


@pytest.mark.parametrize("width", [1280, 1024, 400])
def test_names_of_published_columns_break_at_hyphens_alone(browser, tmp_path, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    show(browser, tmp_path, *small(tmp_path))
    assert len(browser.find_elements(By.CSS_SELECTOR, "thead th.other[scope=col]")) == 4
    assert browser.execute_script(PIECES) == []


def test_a_sample_whose_text_was_left_out_says_so(browser, tmp_path):
    folder = evaluations.write(tmp_path / "e", "m", {"t": [Problem("p", ["correct"])]})
    (folder / "answers.jsonl").unlink()
    show(browser, tmp_path, folder)
    assert "the texts of 1 samples are not shown" in browser.find_element(By.CLASS_NAME, "warning").text
    browser.find_element(By.CLASS_NAME, "row").click()
    wait(browser, lambda: opened(browser) == "0")
    assert "Its text is not in answers.jsonl." in browser.find_element(By.ID, "sample").text
    assert complaints(browser) == []


def test_a_page_of_training_alone_needs_no_script(browser, tmp_path):
    show(browser, tmp_path, evaluations.write_training(tmp_path / "run"))
    assert len(browser.find_elements(By.CSS_SELECTOR, "figure svg")) == 4
    assert browser.find_elements(By.TAG_NAME, "script") == []
    assert complaints(browser) == []


def test_filters_and_keys(browser, tmp_path):
    show(browser, tmp_path, *small(tmp_path))
    found = lambda: browser.find_element(By.ID, "found").text  # noqa: E731
    assert found() == "200 of 200 samples"
    Select(browser.find_element(By.ID, "model")).select_by_visible_text("after (80)")
    assert found() == "80 of 200 samples"
    Select(browser.find_element(By.ID, "verdict")).select_by_visible_text("all but correct")
    assert found() == "30 of 200 samples"
    browser.find_element(By.ID, "problem").send_keys("ME/13")
    assert found() == "3 of 200 samples"
    lines = browser.find_element(By.ID, "list")
    lines.send_keys(Keys.ARROW_DOWN)
    first = str(120 + 13 * 4 + 1)
    wait(browser, lambda: opened(browser) == first)
    assert text(browser, "answer") == "Sample 1: \\boxed{2}"
    assert text(browser, "user") == "What is 1 + 1?" and text(browser, "gold") == "2"
    assert text(browser, "taken for the answer") == "3"
    lines.send_keys(Keys.END)
    wait(browser, lambda: opened(browser) == str(int(first) + 2))
    assert "has no answer" in browser.find_element(By.ID, "sample").text
    assert (text(browser, "answer"), text(browser, "thoughts")) == (None, None)
    lines.send_keys(Keys.ARROW_DOWN, Keys.ARROW_UP)
    wait(browser, lambda: opened(browser) == str(int(first) + 1))
    chosen = browser.find_element(By.CSS_SELECTOR, "[aria-selected=true]")
    assert "truncated" in chosen.text and lines.get_attribute("aria-activedescendant") == chosen.get_attribute("id")
    browser.find_element(By.ID, "problem").send_keys("no such")
    assert found() == "0 of 200 samples"
    assert browser.find_elements(By.CLASS_NAME, "row") == []
    assert complaints(browser) == []


def test_texts_of_every_kind_stay_texts(browser, tmp_path):
    hostile = "</script><script>window.broken = 1</script><!--<img src=x onerror='window.broken = 2'>"
    hostile += "\u202e\0\r\n$\\frac12$"
    problem = Problem(hostile, ["correct"], hostile, hostile + "\ud800", hostile, hostile, lambda _: hostile)
    changed = {"title": hostile, "warnings": [hostile], "prompt": [hostile]}
    show(browser, tmp_path, evaluations.write(tmp_path / "e", hostile, {"t": [problem]}, t=changed))
    browser.find_element(By.CLASS_NAME, "row").click()
    wait(browser, lambda: opened(browser) == "0")
    for name in ("thoughts", "answer", "gold"):
        assert text(browser, name) == hostile
    assert text(browser, "user") == hostile + "\ufffd"
    assert browser.execute_script("return [window.broken ?? null, document.images.length]") == [None, 0]
    assert complaints(browser) == []
    assert requests(browser) == []


@cache
def pool() -> str:
    """Text about as hard to pack as what models write."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoin shrdlu\n.,=+{}\\", k=1 + i % 9)) for i in range(2000)]
    return " ".join(draw.choices(words, k=400_000))


def answer(i: int) -> str:
    """Of the sample of this number: a stretch of the pool. Its thoughts stand in tags."""
    start = random.Random(i).randrange(len(pool()) - SIZE)
    words = pool()[start : start + SIZE - 100]
    return f"<|begin_of_thought|>Thoughts {i}: {words}<|end_of_thought|>Answer {i}: {words[:50]}"


LOOK = """
window.tasks = [];
new PerformanceObserver((found) => found.getEntries().forEach((task) => tasks.push(task.duration)))
  .observe({type: "longtask", buffered: true});
window.most = 0;
new MutationObserver(() => most = Math.max(most, document.querySelectorAll(".row").length))
  .observe(document.getElementById("rows"), {childList: true});
"""
SCROLL = """
const done = arguments[0], list = document.getElementById("list"), times = [];
let before = performance.now();
const frame = (now) => {
  times.push(now - before);
  before = now;
  if (list.scrollTop + list.clientHeight >= list.scrollHeight - 1) return done(times);
  list.scrollTop += list.clientHeight * 0.9;
  requestAnimationFrame(frame);
};
requestAnimationFrame(frame);
"""
OPEN = """
const [at, done] = arguments, list = document.getElementById("list"), sample = document.getElementById("sample");
list.scrollTop = at / Number(arguments[0] >= 0 && document.querySelector("[aria-setsize]").ariaSetSize) *
  document.getElementById("rows").offsetHeight;
const click = () => {
  const row = document.getElementById("row" + at);
  if (!row) return requestAnimationFrame(click);
  const start = performance.now();
  row.click();
  const look = () => {
    if (sample.dataset.opened !== String(at)) return setTimeout(look, 0);
    document.body.offsetHeight;
    done(performance.now() - start);
  };
  look();
};
click();
"""


def test_5000_samples_of_20_kb(browser, tmp_path, capsys):
    problems = (
        Problem(f"p/{i:04d}", ["correct"] * 4, thoughts=None, answer=lambda sample, i=i: answer(4 * i + sample))
        for i in range(SAMPLES // 4)
    )
    show(browser, tmp_path, evaluations.write(tmp_path / "e", "model", {"math500": problems}))
    browser.execute_script(LOOK)
    shown = browser.execute_script("const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd")
    frames = browser.execute_async_script(SCROLL)
    field = browser.find_element(By.ID, "problem")
    field.send_keys("p/07")
    assert browser.find_element(By.ID, "found").text == "400 of 5,000 samples"
    field.clear()
    field.send_keys(" ")
    wait(browser, lambda: browser.find_element(By.ID, "found").text == "5,000 of 5,000 samples")
    draw, openings = random.Random(0), []
    for i in (0, SAMPLES - 1, *draw.sample(range(SAMPLES), 30)):
        openings.append(browser.execute_async_script(OPEN, i))
        assert text(browser, "thoughts") + text(browser, "answer") == answer(i)
        assert text(browser, "answer").startswith(f"Answer {i}:")
    # Two are asked for at once: the last one stays open, though the first, whose chunk is still packed, is there later.
    second = browser.execute_script("return JSON.parse(document.getElementById('index').textContent).starts[1]")
    browser.execute_async_script(OPEN, second)
    browser.execute_script("for (const i of arguments) document.getElementById('row' + i).click()", second - 1, second)
    time.sleep(1)
    assert opened(browser) == str(second)
    tasks, most = browser.execute_script("return [tasks, most]")
    size = (tmp_path / "report.html").stat().st_size / 1e6
    median = statistics.median(openings)
    with capsys.disabled():
        print(
            f"\n{SAMPLES} samples of {len(answer(1)):,} characters, {size:.0f} MB: loaded in {shown:.0f} ms; "
            f"scrolled in {len(frames)} frames, the longest {max(frames):.0f} ms; opened in {median:.0f} ms (longest "
            f"{max(openings):.0f}); longest task {max(tasks, default=0):.0f} ms, {len(tasks)} over 50 ms; at most "
            f"{most} rows"
        )
    assert max(tasks, default=0) < LONGEST_TASK_MS
    assert 0 < most <= 60
    assert complaints(browser) == []
    assert requests(browser) == []
