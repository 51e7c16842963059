"""The command: CSV, tables in the terminal, errors, and the page as far as it needs no browser."""

from __future__ import annotations

import csv
import html.parser
import json
import threading
import urllib.error
import urllib.request

import pytest

from mlperf_jax import report
from mlperf_jax.reporting import live
from mlperf_jax.reporting.markup import tag, text
from mlperf_jax.reporting.tables import References
from tests.reporting import result_trees as trees


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_has_the_agreed_columns_first(tmp_path, capsys):
    trees.published(tmp_path / "tree")
    assert report.main([str(tmp_path / "tree"), f"--csv={tmp_path}/out.csv"]) == 0
    found = rows(tmp_path / "out.csv")
    columns = (
        "round, division, category, submitter, system, benchmark, runs, converged, score_minutes, speedup"
    )
    assert list(found[0])[:10] == columns.split(", ")
    bert, resnet, _ = found
    assert [resnet[c] for c in columns.split(", ")] == (
        ["v2.1", "closed", "on premise", "Acme", "acme-1", "resnet", "5", "5", "30", "294.376111"]
    )
    assert (bert["runs"], bert["converged"], bert["score_minutes"], bert["speedup"]) == ("10", "9", "5.5", "")
    assert "30.00" in capsys.readouterr().out


def test_no_score_is_empty_and_says_why(tmp_path):
    trees.ours(tmp_path / "tree")
    assert report.main([str(tmp_path / "tree"), f"--csv={tmp_path}/out.csv"]) == 0
    mini = next(row for row in rows(tmp_path / "out.csv") if "mini" in row["labels"])
    assert (mini["score_minutes"], mini["speedup"], mini["reason"]) == ("", "", "2 of 5 runs")


def test_speedups_in_the_terminal_and_references_of_the_users(tmp_path, capsys):
    trees.published(tmp_path / "tree")
    assert report.main([str(tmp_path / "tree"), "--metric=speedup"]) == 0
    out = capsys.readouterr().out
    assert "294.4×" in out and "no reference" in out
    given = trees.write(tmp_path / "p100.json", '{"bert": 55}')
    assert report.main([str(tmp_path / "tree"), "--metric=speedup", f"--reference_minutes={given}"]) == 0
    assert "10.0×" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("benchmark", "minutes", "speedup"),
    # As published: DGX-1 and 4 TPU v2 on ResNet, Intel's CPU on NCF. No result of sentiment analysis and DeepSpeech2 ever
    # was; their references took 3.6 and 6,873.6 minutes.
    [
        ("resnet", 134.56, "65.6×"),
        ("resnet", 301.58, "29.3×"),
        ("ncf", 29.80, "1.6×"),
        ("sentiment", 1.19, "3.0×"),
        ("deepspeech2", 687.36, "10.0×"),
    ],
)
def test_speedups_are_those_published_with_v05(tmp_path, capsys, benchmark, minutes, speedup):
    folder = tmp_path / "v0.5.0" / "acme" / "results" / "system" / benchmark
    quality = 0.22 if benchmark == "deepspeech2" else 0.751
    for i in range({"ncf": 100, "sentiment": 10, "deepspeech2": 10}.get(benchmark, 5)):
        trees.write(folder / f"result_{i}.txt", trees.v05_run(minutes, quality=quality, benchmark=benchmark))
    assert report.main([str(tmp_path), "--metric=speedup"]) == 0
    assert speedup in capsys.readouterr().out


def test_labels_and_unreadable_files_are_told(tmp_path, capsys):
    trees.ours(tmp_path / "tree")
    trees.write(tmp_path / "tree" / "results" / "cpu-1x" / "resnet" / "result_9.txt", "nothing")
    assert report.main([str(tmp_path / "tree")]) == 0
    told = capsys.readouterr()
    assert (
        "mini: not MLPerf's data or model" in told.out and "unverified, not reviewed by MLCommons" in told.out
    )
    assert "result_9.txt: holds no MLPerf log line" in told.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name at least one folder"),
        (["nowhere"], "is no folder and no log"),
        (["--metric=hours"], "metric"),
        (["--nothing"], "nothing"),
        ([".", "--html=/proc/none/page.html"], "cannot be written"),
        ([".", "--reference_minutes=none.json"], "cannot be read"),
        ([".", "--reference_minutes=odd.json"], "takes minutes for"),
    ],
)
def test_a_mistake_gets_one_sentence(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    trees.published(tmp_path)
    trees.write(tmp_path / "odd.json", '{"resnet": "fast"}')
    assert report.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


def test_help_names_every_flag(capsys):
    assert report.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"--{name}" in out for name in ("csv", "html", "metric", "reference_minutes", "serve", "port"))


def test_an_empty_folder_is_a_mistake_but_not_for_the_live_page(tmp_path, capsys):
    assert report.main([str(tmp_path), f"--html={tmp_path}/page.html"]) == 2
    assert "holds no results" in capsys.readouterr().err and not (tmp_path / "page.html").exists()
    assert b"No results yet" in live.Source([tmp_path], References(), "minutes").html()


class _Collector(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def test_hostile_text_is_text_everywhere(tmp_path, capsys):
    trees.hostile(tmp_path / "tree")
    assert report.main([str(tmp_path / "tree"), f"--html={tmp_path}/p.html", f"--csv={tmp_path}/p.csv"]) == 0
    page = _Collector()
    page.feed((tmp_path / "p.html").read_text())
    assert page.tags.count("script") == 1 and not {"img", "iframe", "object", "a:script"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert links and all(value.startswith(("#", "data:,")) for value in links)
    assert "\u202e" not in (tmp_path / "p.html").read_text()
    assert all("\u202e" not in value for row in rows(tmp_path / "p.csv") for value in row.values())


_NASTY = [
    1e308,
    -1e308,
    10**400,
    -1,
    0,
    [],
    {},
    None,
    "x",
    True,
    [[1]],
    {"BBOX": "a"},
    "NaN",
    float("nan"),
    float("inf"),
]


@pytest.mark.parametrize("ours", [False, True])
def test_figures_that_are_none_do_no_harm(tmp_path, ours):
    keys = ("eval_accuracy", "global_batch_size", "quality_target", "compile_time", "submission_benchmark")
    at = 1_665_000_000_000
    for place, nasty in enumerate(_NASTY):
        for i in range(5):
            text = trees.mllog("run_labels", 1, ["ours"]) if ours else ""
            text += "".join(trees.mllog(key, at, nasty) for key in (*keys, "tracked_stats"))
            text += trees.mllog("tracked_stats", 5, {"throughput": nasty, "input_wait_seconds": nasty})
            text += trees.mllog("init_start", nasty) + trees.mllog("run_labels", 1, nasty)
            text += trees.mllog_run(5.0 + i).replace('"epoch_num": 12.0', f'"epoch_num": {json.dumps(nasty)}')
            text += f":::MLL 1558000000.0 run_start: {json.dumps(nasty)}\n"
            text += f":::MLPv0.5.0 a 1 (x) seed: {json.dumps(nasty)}\n"
            folder = tmp_path / "v2.1" / "org" / "results" / f"system_{place}" / "resnet"
            trees.write(folder / f"result_{i}.txt", text)
    assert report.main([str(tmp_path), f"--html={tmp_path}/p.html", f"--csv={tmp_path}/p.csv"]) == 0
    assert [row["converged"] for row in rows(tmp_path / "p.csv")] == ["5"] * len(_NASTY)


def test_a_spreadsheet_takes_no_cell_for_a_formula(tmp_path):
    org = tmp_path / "tree" / "training_results_v2.1" / "=cmd()"
    trees.write(org / "results" / "s" / "resnet" / "result_0.txt", trees.mllog_run(1.0))
    report.main([str(tmp_path / "tree"), f"--csv={tmp_path}/p.csv"])
    assert rows(tmp_path / "p.csv")[0]["submitter"] == "'=cmd()"


def test_markup_escapes_all_but_itself():
    assert tag("a", "<b>", tag("i", "x"), title='"&', hidden=True, id=None) == (
        '<a title="&quot;&amp;" hidden>&lt;b&gt;<i>x</i></a>'
    )
    assert text("a\x00\u202eb\ud800") == "a\ufffd\ufffdb?"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "_LEAST_SECONDS", 0.0)
    with live.make_server(live.Source([tmp_path], References(), "minutes"), 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def _get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return answer.read().decode()


def test_the_live_page_follows_a_growing_folder(server, tmp_path):
    before = _get(f"{server}/version")
    assert "No results yet" in _get(f"{server}/") and _get(f"{server}/version") == before
    trees.published(tmp_path)
    assert _get(f"{server}/version") != before
    assert "acme-1" in _get(f"{server}/") and f'data-live="{_get(f"{server}/version")}"' in _get(f"{server}/")


def test_the_live_page_is_for_this_machine_alone(server):
    assert server.startswith("http://127.0.0.1:")
    for url, headers, code in (
        (f"{server}/", {"Host": "evil.example"}, 403),
        (f"{server}/../etc/passwd", {}, 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as error:
            _get(url, **headers)
        assert error.value.code == code


def test_a_port_that_is_taken_is_told(server, tmp_path, capsys):
    assert report.main([str(tmp_path), "--serve", f"--port={server.rsplit(':', 1)[1]}"]) == 2
    assert "--port" in capsys.readouterr().err


def test_the_command_of_a_run_of_ours_is_shown(tmp_path):
    trees.ours(tmp_path / "tree")
    run = tmp_path / "tree" / "runs" / "cpu-1x" / "resnet" / "run_0" / "status.json"
    run.write_text(json.dumps({"command": ["python", "-m", "mlperf_jax.main", "--system=a b"]}))
    report.main([str(tmp_path / "tree"), f"--html={tmp_path}/p.html"])
    assert "python -m mlperf_jax.main &#x27;--system=a b&#x27;" in (tmp_path / "p.html").read_text()


def test_losses_are_shown_beside_published_ones(tmp_path):
    """Of closed runs of a language model: a sentence, and a picture with their range."""
    qualities = (5.25, 4.26, 3.95)
    text = trees.mllog_run(30.0, benchmark="llama31_8b", batch_size=16, qualities=qualities, status="aborted")
    text = (
        text.replace("epoch_num", "samples_count").replace(": 12.0", ": 12288").replace(": 24.0", ": 24576")
    )
    text = text.replace(": 36.0", ": 36864") + trees.mllog("submission_division", 1, "closed")
    text += trees.mllog("opt_base_learning_rate", 1, 4e-4)
    folder = tmp_path / "training_results_v6.1" / "Acme" / "results" / "a" / "llama31_8b"
    trees.write(folder / "result_0.txt", text)
    assert report.main([str(tmp_path), f"--html={tmp_path / 'page.html'}"]) == 0
    html = (tmp_path / "page.html").read_text()
    words = "loss 3.950, where the 140 published runs of batch size 16 and base learning rate 0.0004 were at 3.910 to 4.000"
    assert f"{words} after 36,864 sequences, median 3.960" in html
    assert html.count("Loss beside 140 published runs: their range grey") == 1
    assert html.count("mlcommons/training_results_v5.1") == 1
    label = html[html.index('aria-label="Loss by sequences') :]
    drawn = label[: label.index("</svg>")]
    assert drawn.count("<use") >= len(qualities)  # a mark for each of its evaluations
    assert "thousand sequences trained on" in drawn


def test_several_figures_are_drawn_and_told_each(tmp_path):
    for i in range(5):
        text = trees.mllog_run(30.0 + i, benchmark="maskrcnn", qualities=({"BBOX": 0.38, "SEGM": 0.341},))
        trees.write(
            tmp_path / "training_results_v2.1" / "Acme" / "results" / "a" / "maskrcnn" / f"result_{i}.txt",
            text,
        )
    assert report.main([str(tmp_path), f"--html={tmp_path / 'page.html'}"]) == 0
    html = (tmp_path / "page.html").read_text()
    assert html.count("Quality against time; orange") == 2
    assert html.count("BBOX 0.38, SEGM 0.341") == 5
