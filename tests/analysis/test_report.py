"""The page in a browser: no errors, nothing loaded, nothing run that a response says."""

import json
import re

import pytest
from browser import CHROMIUM, browser
from recorded import HOSTILE, figures, write_run

from rljax import analyze
from rljax.analysis.report import embedded

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on the PATH")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of two runs, one of which has all that may be shown, and hostile texts everywhere."""
    folder = tmp_path_factory.mktemp("report")
    lengths = {f"response_length_{name}": 20.0 for name in ("min", "p5", "p50")}
    lengths["response_length_max"] = 60.0
    records = [figures(step, **lengths, **{HOSTILE: 1.0, "bad": None}) for step in range(1, 31)]
    evaluations = [{"step": step, "length_mean": 30.0} for step in (0, 15, 30)]
    responses = [(f"answer {index}", 15 + index) for index in range(30)]
    one = write_run(
        *(folder / "with", records, evaluations),
        events=[{"time": "2026-01-01", "event": "warning", "text": HOSTILE}],
        responses=[(HOSTILE, 50), *responses],
    )
    name = "a run with a very long name " + "x" * 60
    two = write_run(folder / name, [figures(step, length=50.0) for step in range(1, 13)])
    arguments = [f"{one}", f"{two}", "--compare", "--out", f"{folder / 'out'}", "--sheet"]
    assert analyze.main([*arguments, "--metric", "*"]) == 0
    return folder / "out" / "report.html"


def test_whatever_a_text_holds_the_page_has_two_scripts(report):
    page = report.read_text("utf-8")
    assert len(re.findall(r"<script", page)) == 2
    assert HOSTILE not in page
    assert json.loads(embedded([HOSTILE, float("nan")])) == [HOSTILE, None]


def test_nothing_is_named_that_could_be_loaded(report):
    page = report.read_text("utf-8")
    assert set(re.findall(r"https?://[^\s\"'\\]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(src|href)=|@import|url\(", re.sub(r"(?s)<script id.*", "", page))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(375, True), (1280, False)])
def test_the_page_fits_and_complains_of_nothing(report, pages, width, dark):
    pages.open(report, width, dark=dark)
    assert pages.run("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('.card, .tools, .filters, p')]"
    assert pages.run(f"{wide}.filter((e) => e.scrollWidth > e.clientWidth + 1).length") == 0
    assert pages.run("document.querySelectorAll('#curves path.line').length") > 10
    assert pages.complaints == []
    assert pages.requests == [report.resolve().as_uri()]


@needs_browser
def test_what_a_response_says_is_text(report, pages):
    pages.open(report, 1280)
    first = "document.querySelector('#samples .response').textContent"
    assert pages.run(first) == HOSTILE
    assert pages.run("document.querySelectorAll('img, b img, main script').length") == 0
    assert pages.run("document.title").startswith("with, a run")
    assert pages.complaints == []


@needs_browser
def test_samples_are_chosen_and_paged(report, pages):
    pages.open(report, 1280)
    count = "document.getElementById('samples-count').textContent"
    shown = "document.querySelectorAll('#samples .sample').length"
    set_to = """(() => {{ const input = document.querySelector('#samples [name={}]');
        input.value = '{}'; input.dispatchEvent(new Event('{}')); }})()"""
    assert pages.run(count) == "31 of 93 responses"  # of the newest evaluation
    assert pages.run(shown) == 20
    pages.run("document.querySelectorAll('.pager button')[1].click()")
    assert pages.run(shown) == 11
    pages.run(set_to.format("verdict", "long", "change"))
    assert pages.run(count) == "5 of 93 responses"
    pages.run(set_to.format("step", "", "change"))
    assert pages.run(count) == "15 of 93 responses"
    pages.run(set_to.format("verdict", "", "change"))
    pages.run(set_to.format("search", "ANSWER 29", "input"))
    pages.run("new Promise((done) => setTimeout(done, 200))")
    assert pages.run(count) == "3 of 93 responses"
    assert pages.run("document.querySelector('#samples mark').textContent") == "answer 29"


@needs_browser
def test_curves_are_smoothed_hidden_and_read(report, pages):
    pages.open(report, 1280)
    frame = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    cards = "[...document.querySelectorAll('#curves .card')]"
    reward = f"{cards}.find((card) => /reward_mean/.test(card.textContent))"
    line = f"{reward}.querySelector('path.line:not(.raw)').getAttribute('d')"
    before = pages.run(line)
    pages.run("""(() => { const slider = document.getElementById('smoothing');
        slider.value = 0.95; slider.dispatchEvent(new Event('input')); })()""")
    pages.run(frame)
    assert pages.run(line) != before
    lines = "document.querySelectorAll('#curves path.line').length"
    both = pages.run(lines)
    pages.run("document.querySelector('.toggle input').click()")
    pages.run(frame)
    assert 0 < pages.run(lines) < both
    told = f"""(() => {{ const plot = {reward}.querySelector('.plot');
        const place = plot.getBoundingClientRect();
        plot.dispatchEvent(new PointerEvent('pointermove', {{ clientX: place.right - 13 }}));
        return plot.querySelector('.tip').textContent; }})()"""
    assert pages.run(told).startswith("step 12")
    assert pages.complaints == []
