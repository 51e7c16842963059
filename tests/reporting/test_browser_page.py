"""The page in a real browser: the switch, sorting, narrow screens, hostile results, the live page."""

from __future__ import annotations

import json
import threading
import time

import pytest

from mlperf_jax.reporting import live, page
from mlperf_jax.reporting.tables import References
from mlperf_jax.rounds.collect import Reader
from mlperf_jax.rounds.inference_logs import read_inference
from tests.reporting import browser
from tests.reporting import result_trees as trees

pytestmark = pytest.mark.skipif(
    browser.CHROMIUM is None, reason="no chromium here (Debian's package chromium)"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def _page_file(root, metric="minutes"):
    results, problems = Reader().read([root])
    inference, more = read_inference([root])
    file = root / "report.html"
    file.write_text(
        page.render(page.Report(results, inference, [*problems, *more]), References(), metric), "utf-8"
    )
    return file


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    trees.published(root)
    trees.ours(root / "results")
    trees.inference(root / "acme" / "results")
    return _page_file(root).as_uri()


_VISIBLE = "[...document.querySelectorAll('td.number a')].map(a => a.innerText.trim())"
_OVERFLOWING = """[...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.outerHTML.slice(0, 120))"""


def test_the_switch_changes_what_the_tables_show(chromium, url):
    tab = chromium.page()
    tab.open(url)
    assert "30.00" in tab.run(_VISIBLE)
    assert tab.run("document.querySelector('.switch [aria-pressed=true]').innerText") == "Minutes"
    tab.run("document.querySelector('.switch [data-metric=speedup]').click()")
    shown = tab.run(_VISIBLE)
    assert "294.4×" in shown and "no reference" in shown and "30.00" not in shown
    tab.run("document.querySelector('.switch [data-metric=minutes]').click()")
    assert "30.00" in tab.run(_VISIBLE)
    assert tab.errors == [] and [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []


def test_the_metric_asked_for_comes_first(chromium, tmp_path):
    tab = chromium.page()
    tab.open(_page_file(trees.published(tmp_path), "speedup").as_uri())
    assert "294.4×" in tab.run(_VISIBLE)


def test_a_click_on_a_heading_sorts_and_another_turns_it_round(chromium, url):
    tab = chromium.page()
    tab.open(url)
    column = "[...document.querySelector('tbody').rows].map(r => r.cells[2].innerText.trim())"
    button = "[...document.querySelectorAll('thead button')].find(b => b.innerText === 'ResNet-50')"
    tab.run(f"{button}.click()")
    assert tab.run(column) == ["acme-1", "acme-2"]
    tab.run(f"{button}.click()")
    assert tab.run(column) == ["acme-2", "acme-1"]
    # What has no figure comes last in both directions.
    bert = "[...document.querySelectorAll('thead button')].find(b => b.innerText === 'BERT')"
    for _ in range(2):
        tab.run(f"{bert}.click()")
        assert tab.run(column) == ["acme-1", "acme-2"]
    assert tab.errors == []


def test_a_score_leads_to_its_details(chromium, url):
    tab = chromium.page()
    tab.open(url)
    tab.run("document.querySelector('td.number a').click()")
    opened = "document.querySelector(document.querySelector('td.number a').hash).open"
    assert tab.run(f"new Promise(r => setTimeout(() => r({opened}), 100))")


@pytest.mark.parametrize("width", [400, 320, 1200])
def test_nothing_overflows(chromium, url, width):
    tab = chromium.page(width)
    tab.open(url)
    tab.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.run("document.documentElement.scrollWidth") <= width
    if width < 700:  # wide screens may scroll a wide table within its frame
        assert tab.run(_OVERFLOWING) == []
    assert tab.errors == []


def test_every_figure_is_drawn(chromium, url):
    tab = chromium.page()
    tab.open(url)
    tab.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    sizes = tab.run("""[...document.querySelectorAll('figure svg')].map(
        s => [s.clientWidth, s.clientHeight, s.querySelectorAll('path').length])""")
    assert len(sizes) > 10 and all(w > 100 and h > 50 and n > 5 for w, h, n in sizes)
    missing = """[...document.querySelectorAll('svg use')].filter(u => !document.getElementById(
        (u.getAttribute('xlink:href') ?? u.getAttribute('href')).slice(1))).length"""
    assert tab.run(missing) == 0
    ids = tab.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_hostile_results_inject_nothing(chromium, tmp_path):
    trees.hostile(tmp_path)
    tab = chromium.page(400)
    tab.open(_page_file(tmp_path).as_uri())
    tab.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.run("document.title") == "MLPerf-style results"
    assert tab.run("[document.scripts.length, document.images.length]") == [1, 0]
    assert tab.run("document.querySelectorAll('iframe, object, embed, form, base').length") == 0
    attributes = """[...document.querySelectorAll('*')].flatMap(e => [...e.attributes])
        .filter(a => /^on/i.test(a.name)).length"""
    assert tab.run(attributes) == 0
    assert tab.run("document.body.innerText.includes('<script>')")  # it is there, as text
    assert tab.run(_OVERFLOWING) == []
    assert tab.run("document.documentElement.scrollWidth") <= 400
    assert tab.errors == []


def test_it_prints_the_table_and_what_is_open(chromium, url):
    tab = chromium.page()
    tab.open(url)
    tab._call("Emulation.setEmulatedMedia", media="print")
    assert tab.run("getComputedStyle(document.querySelector('.switch')).display") == "none"
    assert tab.run("getComputedStyle(document.querySelector('details.result')).display") == "none"
    assert tab.run("document.querySelector('table').getBoundingClientRect().height") > 50


def test_the_live_page_shows_a_new_run_and_keeps_the_readers_choice(chromium, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "_LEAST_SECONDS", 0.0)
    trees.ours(tmp_path)
    with live.make_server(live.Source([tmp_path], References(), "minutes"), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab = chromium.page()
        tab.open(f"http://127.0.0.1:{server.server_address[1]}/")
        tab.run("document.querySelector('.switch [data-metric=speedup]').click()")
        tab.run("document.querySelector('details.result').open = true")
        assert "169.8×" in tab.run(_VISIBLE)
        logs = tmp_path / "results" / "cpu-1x" / "resnet"
        for i in range(5):
            text = (logs / f"result_{i}.txt").read_text()
            stop = json.loads(text.splitlines()[-1].removeprefix(":::MLLOG "))
            moved = text.replace(str(stop["time_ms"]), str(stop["time_ms"] + 3_600_000))
            (logs / f"result_{i}.txt").write_text(moved + "\n")
        for _ in range(100):
            time.sleep(0.2)
            if "78.9×" in tab.run(_VISIBLE):
                break
        assert "78.9×" in tab.run(_VISIBLE)
        assert tab.run("document.querySelector('details.result').open")
        assert tab.errors == []
        server.shutdown()
