"""`python -m benchmarks.run`: a small row, the record and the page that it leaves."""

import math
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from benchmarks import run
from benchmarks.speed import measure, page
from mlperf_jax.reporting import ratios
from tests import door

SVG = "{http://www.w3.org/2000/svg}"


def test_the_page_is_what_the_record_makes():
    """So nothing of it is by hand; `python -m benchmarks.run --page` writes it anew."""
    record = page.read(page.FOLDER)
    assert (page.FOLDER / "README.md").read_text() == page.text(record)
    drawn = page.pictures(record)
    assert {path.name for path in page.FOLDER.glob("run_*.svg")} == drawn.keys()
    for name, svg in drawn.items():
        assert (page.FOLDER / name).read_text() == svg


def test_a_row_without_an_accelerator(tmp_path):
    """Ours and eager PyTorch, in processes of their own; the compiled one takes a minute of a C++ compiler."""
    pytest.importorskip("torch", reason="PyTorch is the peer")
    small = ["--config.model.stages=(1,)", "--config.batch_size=16"]
    command = [sys.executable, "-m", "benchmarks.run", "--only=resnet50", "--platform=cpu", "--peers=eager"]
    command += ["--rounds=2", "--seconds=0.01", f"--out={tmp_path}", *small]
    done = subprocess.run(
        command,
        cwd=door.ROOT,
        env=door.environment(**door.LIGHTLY),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "resnet50 (1 of 1): train, round 2 of 2" in done.stderr
    assert "resnet50 train of 16:" in done.stdout and "PyTorch / ours" in done.stdout
    (rows,) = page.read(tmp_path)["systems"].values()
    row = rows["resnet50"]
    assert row["programs"].keys() == {"train", "predict_one", "predict_many"} and not row["not_measured"]
    for program, found in row["programs"].items():
        assert found["sides"].keys() == {"ours", "eager"}
        for side in found["sides"].values():
            assert len(side["rounds"]) == 2
            assert 0 < side["wall"]["low"] <= side["wall"]["median"] <= side["wall"]["high"]
            assert side["cpu"]["median"] > 0 and side["per_second"] > 0
        assert found["ratios"]["eager"]["apart"] <= (1e-4 if program == "train" else 0.05)
    assert 0.9 < row["flops"]["program"] / row["flops"]["model"] < 1.1 and row["moved_bytes"] > 0
    assert min(row["reached"].values()) > 1e8 and row["predicted_step"] is None
    assert row["waiting_cores"] < 0.2
    written = (tmp_path / "README.md").read_text()
    assert written == page.text(page.read(tmp_path))
    assert "| resnet50 (mini) | 16 |" in written
    assert "| resnet50 (closed) | not measured |" in written and "--platform=tpu --only=resnet50`" in written


def side(wall, cpu):
    return [{"wall": w, "cpu": c, "peak": 5, "calls": 2} for w, c in zip(wall, cpu, strict=True)]


def made_up_row(wall):
    turns = {"ours": side([wall] * 2, [wall] * 2), "eager": side([2 * wall] * 2, [2 * wall] * 2)}
    compiled = {name: {"compile_seconds": 1.0} for name in turns}
    return {
        "system": "here",
        "device": "cpu",
        "unit": "images",
        "precision": "float32",
        "sizes": {"train": 8},
        "programs": {"train": measure.summary(turns, compiled, {"eager": {"train": 0.0}}, "train", 8)},
        "not_measured": {"compile": {"everything": "Error: no | compiler"}},
        "waiting_cores": 0.01,
        "seconds": 1.0,
    }


def test_rows_are_added_and_replaced(tmp_path, monkeypatch, capsys):
    rows = iter([made_up_row(0.1), made_up_row(0.2), made_up_row(0.4)])
    monkeypatch.setattr(measure, "measure", lambda *_, **__: next(rows))
    where = [f"--out={tmp_path}", "--platform=cpu"]
    assert run.main(["--only=dlrm,minigo", *where]) == 0
    assert run.main(["--only=dlrm", *where]) == 0
    found = page.read(tmp_path)["systems"]["here"]
    assert [found[w]["programs"]["train"]["sides"]["ours"]["cpu"]["median"] for w in ("dlrm", "minigo")] == [
        0.4,
        0.2,
    ]
    assert found["dlrm"]["command"].startswith("python -m benchmarks.run --only=dlrm --out=")
    written = (tmp_path / "README.md").read_text()
    assert (
        "| minigo (mini) | 8 | 200 (200 to 200) |" in written
        and "not measured: Error: no / compiler" in written
    )
    assert "dlrm train of 8: 100 CPU ms, PyTorch / ours 2.00" in capsys.readouterr().out


def test_the_picture_has_a_mark_where_each_ratio_is():
    row = {
        "programs": {
            "train": {"ratios": {"eager": _ratio(2.0), "compile": _ratio(0.5)}},
            "predict": {"ratios": {}},
        }
    }
    drawn = ratios.draw(
        {"<one>": row}, {"train": "Train", "predict": "Predict"}, {"eager": "E", "compile": "C"}
    )
    tree = ElementTree.fromstring(drawn)
    assert "<one>" in [text.text for text in tree.iter(f"{SVG}text")]
    marks = [float(mark.get("cx")) for mark in tree.iter(f"{SVG}circle") if mark.get("r") == "3"]
    spreads = [line for line in tree.iter(f"{SVG}line") if line.get("stroke-width")]
    labels = {text.text: float(text.get("x")) for text in tree.iter(f"{SVG}text") if text.get("y") == "90"}
    left, right = labels["0.5"], labels["2"]
    # Quartiles at 0.4 and 2.5 take the axes from 1/4 to 4, of which the second panel has the same.
    assert (right - left) / 2 == pytest.approx(labels["4"] - right)
    panel = labels["4"] - labels["0.25"]
    assert [(x + 254 - labels["0.25"]) / panel for x in marks] == pytest.approx([0.75, 0.25], abs=1e-3)
    widths = [float(line.get("x2")) - float(line.get("x1")) for line in spreads]
    assert widths == pytest.approx([panel * math.log2(1.25 / 0.8) / 4] * 2, abs=0.2)


def _ratio(median):
    return {"cpu": {"low": 0.8 * median, "median": median, "high": 1.25 * median}}


def test_a_row_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    def fails(spec, *_, **__):
        if spec["workload"] == "dlrm":
            raise measure.Failed("its state takes 90 GiB")
        return made_up_row(0.1)

    monkeypatch.setattr(measure, "measure", fails)
    assert run.main(["--only=dlrm,minigo", f"--out={tmp_path}", "--platform=cpu"]) == 1
    assert "dlrm is not measured: its state takes 90 GiB." in capsys.readouterr().err
    assert page.read(tmp_path)["systems"]["here"].keys() == {"minigo"}


def test_medians_quartiles_and_ratios_are_of_rounds():
    turns = {"ours": side([1, 2, 3, 4, 5], [2] * 5), "eager": side([2, 2, 6, 2, 10], [3, 3, 3, 3, 30])}
    compiled = {name: {"compile_seconds": 1.0} for name in turns}
    found = measure.summary(turns, compiled, {"eager": {"train": 0.5}}, "train", 6)
    assert found["sides"]["ours"]["wall"] == {"median": 3, "low": 2, "high": 4}
    assert found["sides"]["ours"]["per_second"] == 2
    assert found["ratios"]["eager"]["wall"]["median"] == 2  # of 2, 1, 2, 0.5, 2
    assert found["ratios"]["eager"]["cpu"] == {"median": 1.5, "low": 1.5, "high": 1.5}
    assert found["ratios"]["eager"]["apart"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only=resnet51"], "--only=resnet51 has no peer; there are bert, "),
        (["--only=dlrm", "--peers=jax"], "--peers=jax is none of eager, compile and none"),
        (["--rounds=1"], "--rounds"),
    ],
)
def test_mistakes_end_in_a_sentence(capsys, arguments, said):
    assert run.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_without_pytorch_ours_is_measured_alone(monkeypatch, capsys):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    run.FLAGS.unparse_flags()
    run.cli.parse_flags(run.FLAGS, [])
    assert run._sides("cpu") == []
    assert "there is no PyTorch, so ours is measured alone" in capsys.readouterr().err


def test_a_side_that_cannot_start_says_why(tmp_path):
    spec = dict(workload="resnet50", preset="mini", platform="tpu", overrides=[], seed=0)
    with pytest.raises(measure.Failed, match="libtpu|no TPU"):
        measure.measure(spec, [], rounds=2, seconds=0.1, say=lambda text: None)
