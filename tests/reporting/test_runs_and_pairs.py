"""What the terminal shows of single runs, two folders side by side, and single logs."""

import re

import pytest

from mlperf_jax import check, report
from mlperf_jax.reporting import figures
from mlperf_jax.reporting.timing import split_time
from mlperf_jax.rounds.collect import Reader
from tests.reporting import result_trees as trees


@pytest.fixture
def told(capsys):
    def read(*arguments):
        assert report.main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    return read


def test_runs_without_a_score_show_time_quality_and_state(tmp_path, told):
    trees.ours(tmp_path / "tree")
    lines = told(tmp_path / "tree").splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith("mini/results/cpu-1x/resnet"))
    assert "cpu-1x" in lines[at]
    # 0.77 - 0.5 / 8 ** 2
    assert lines[at + 1].split() == [
        "result_0.txt",
        "1.00",
        "min",
        "top-1",
        "accuracy",
        "0.7622",
        "of",
        "0.759",
        "converged",
    ]
    assert lines[at + 2].split()[:3] == ["result_1.txt", "1.20", "min"]
    assert any("1.10 min, no score: 2 of 5 runs" in line for line in lines)


def test_a_run_that_goes_on_shows_its_state(tmp_path, told):
    trees.ours(tmp_path)
    log = tmp_path / "mini" / "results" / "cpu-1x" / "resnet" / "result_1.txt"
    log.write_text(
        "\n".join(line for line in log.read_text().splitlines() if '"run_stop"' not in line) + "\n"
    )
    status = tmp_path / "mini" / "runs" / "cpu-1x" / "resnet" / "run_1" / "status.json"
    status.write_text(status.read_text().replace("success", "running"))
    (line,) = (line for line in told(log).splitlines() if line.lstrip().startswith("result_1.txt"))
    assert line.split()[1] == "-" and line.endswith("running")


def test_published_rounds_show_their_runs_only_where_one_result_is_named(tmp_path, told):
    trees.published(tmp_path)
    assert "result_0.txt" not in told(tmp_path)
    one = tmp_path / "training_results_v2.1" / "Acme" / "results" / "acme-1" / "resnet"
    assert told(one).count("converged") == 5


def test_two_folders_stand_side_by_side(tmp_path, told):
    for name in ("before", "after"):
        trees.ours(tmp_path / name)
        trees.inference(tmp_path / name / "results" / "inference")
    for log in (tmp_path / "after" / "results" / "cpu-1x" / "resnet").glob("*.txt"):
        end = r'"time_ms": (\d+)(, "event_type": "INTERVAL_END", "key": "run_stop")'
        log.write_text(re.sub(end, _half_longer, log.read_text()))
    out = told(tmp_path / "before", tmp_path / "after", f"--html={tmp_path}/page.html")
    table = out[out.index("Side by side") :].splitlines()
    assert str(tmp_path / "before") in table[1] and str(tmp_path / "after") in table[1]
    closed = next(line for line in table if line.startswith("ResNet-50, cpu-1x"))
    assert "52.00 min" in closed and "78.00 min" in closed and closed.endswith("1.500")
    mini = next(line for line in table if line.startswith("ResNet-50 (mini), cpu-1x"))
    assert "mean of 2, no score: 2 of 5 runs" in mini and mini.endswith("1.000")
    assert any("SingleStream" in line and "1.9 ms VALID" in line and line.endswith("1.000") for line in table)
    assert "Side by side" in (tmp_path / "page.html").read_text()
    assert "Side by side" not in told(tmp_path / "before")


def _half_longer(match):
    start = 1_780_000_060_000
    return f'"time_ms": {start + (int(match[1]) - start) * 3 // 2}{match[2]}'


def test_other_systems_are_compared_where_each_folder_has_one(tmp_path, told):
    for name, system in (("a", "acme-1"), ("b", "acme-2")):
        for i in range(5):
            trees.write(
                tmp_path / name / "results" / system / "resnet" / f"result_{i}.txt",
                trees.mllog_run(30.0 if name == "a" else 15.0),
            )
    assert re.search(
        r"ResNet-50, acme-1 / acme-2 +30.00 min +15.00 min +0.500", told(tmp_path / "a", tmp_path / "b")
    )


def test_a_log_alone_is_read_by_both_commands(tmp_path, told, capsys):
    trees.ours(tmp_path)
    log = tmp_path / "mini" / "results" / "cpu-1x" / "resnet" / "result_0.txt"
    assert "result_1.txt" not in told(log) and "result_0.txt" in told(log)
    check.main([str(log)])
    out = capsys.readouterr().out
    assert "1 training log(s) and 0 LoadGen run(s) judged" in out
    assert "[number-of-runs]" not in out and re.search(r"^result_0.txt", out, re.MULTILINE)
    trees.inference(tmp_path / "served")
    log = tmp_path / "served" / "sys" / "bert" / "Server" / "qps100" / "mlperf_log_detail.txt"
    assert "98.5 per s" in told(log) and "qps200" not in told(log)
    check.main([str(log)])
    assert "0 training log(s) and 1 LoadGen run(s) judged" in capsys.readouterr().out


@pytest.mark.parametrize("command", [check, report])
def test_an_empty_folder_is_a_mistake_in_both(tmp_path, capsys, command):
    assert command.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "holds no results of training or inference" in error and error.count("\n") == 1


def test_labels_beside_an_axis_have_room(tmp_path):
    """A browser draws letters of 9 points 0.55 em wide on average: none may begin left of the drawing."""
    trees.ours(tmp_path)
    (result, _), _ = Reader().read([tmp_path])
    names = [(f"result_{i}00000", split_time(result.logs[0])) for i in range(3)]
    for drawn in (figures.throughput(result.logs), figures.time_split(names)):
        labels = re.findall(r'text-anchor: end[^>]*? x="([\d.]+)"[^>]*>([^<]+)', str(drawn))
        assert labels and all(float(x) > 0.55 * 9 * len(words) for x, words in labels)
