"""What MediaPipe's detector finds on photographs: recorded, drawn, and held against two interpreters of its TFLite graph.

    python -m benchmarks.objectron                 # objectron.json, objectron.md and objectron.jpg
    python -m benchmarks.objectron --serve         # adds the four scenarios
    python -m benchmarks.objectron --page          # objectron.md again, of what was measured
    python -m benchmarks.objectron --record        # also input_pipelines/image/objectron_answers.json; needs ai-edge-litert

The data is that of `python -m mlperf_jax.prepare --workload=objectron`. Recorded answers are those of LiteRT, Google's interpreter of
such files (`pip install ai-edge-litert`; no part of this project's environment), whose raw outputs become boxes in plain NumPy
here. The second judge is `benchmarks.tflite_graph`, in float64.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import input_pipelines
from benchmarks import record_convergence, records
from benchmarks.tflite_graph import Interpreter
from input_pipelines.image import objectron
from mlperf_jax import making
from mlperf_jax.detection import drawing
from mlperf_jax.inference import trained
from mlperf_jax.parallel import mesh
from mlperf_jax.workloads.objectron import Objectron

HERE = Path(__file__).parent
_ANSWERS = Path(objectron.__file__).with_name("objectron_answers.json")
_DRAWN = ("astronaut", "chelsea", "coffee")  # public domain and CC0
_NAMED = {"farm_animals/cat": "Cat", "farm_animals/cow": "Cattle", "farm_animals/dog": "Dog"}
_TOLD = 0.3
_SECONDS = 10.0
_IN_NUMPY = 1  # of the photographs, as each takes seconds
_OVERLAP = 0.4

Found = list[tuple[str, float, list[float]]]
"""Class, score and corners (left, top, right, bottom in parts of the image), best first."""
Raw = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""An image [S, S, 3] uint8 to box codes [A, 4] (y, x, height, width) and logits [A, classes]."""


def plain_anchors() -> list[tuple[float, float, float, float]]:
    """(x, y, width, height) as MediaPipe's SsdAnchorsCalculator makes them of the options in its graph."""
    scales = [0.2 + (0.95 - 0.2) * i / 5 for i in range(6)] + [1.0]
    found = []
    for layer, stride in enumerate((16, 32, 64, 128, 256, 512)):
        shapes = [(scales[layer], aspect) for aspect in (1.0, 2.0, 0.5, 3.0, 0.3333)]
        shapes.append((math.sqrt(scales[layer] * scales[layer + 1]), 1.0))
        if layer == 0:
            shapes = [(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]
        cells = math.ceil(objectron.SIZE / stride)
        for y in range(cells):
            for x in range(cells):
                for scale, aspect in shapes:
                    width, height = scale * math.sqrt(aspect), scale / math.sqrt(aspect)
                    found.append(((x + 0.5) / cells, (y + 0.5) / cells, width, height))
    return found


def plain_boxes(codes: np.ndarray, logits: np.ndarray) -> Found:
    """Decodes and suppresses one box after the other, without anything of `mlperf_jax.detection`."""
    corners = []
    for (y, x, height, width), (ax, ay, aw, ah) in zip(codes.tolist(), plain_anchors(), strict=True):
        x, y = x / 10 * aw + ax, y / 10 * ah + ay
        width, height = math.exp(width / 5) * aw, math.exp(height / 5) * ah
        corners.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    found: Found = []
    for label, name in enumerate(objectron.CLASSES, 1):
        scores = 1 / (1 + np.exp(-logits[:, label].astype(np.float64)))
        kept: list[tuple[float, ...]] = []
        for anchor in np.argsort(-scores, kind="stable").tolist():
            if scores[anchor] <= _TOLD:
                break
            if all(_iou(corners[anchor], other) < _OVERLAP for other in kept):
                kept.append(corners[anchor])
                found.append((name, float(scores[anchor]), [min(max(c, 0.0), 1.0) for c in corners[anchor]]))
    return sorted(found, key=lambda row: -row[1])


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def litert(path: Path) -> tuple[Raw, str]:
    """Google's interpreter, and its version."""
    import importlib.metadata

    from ai_edge_litert.interpreter import Interpreter as LiteRT

    interpreter = LiteRT(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()

    def run(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], _scaled(image))
        interpreter.invoke()
        codes, logits = (interpreter.get_tensor(out["index"])[0] for out in interpreter.get_output_details())
        return codes, logits

    return run, f"LiteRT {importlib.metadata.version('ai-edge-litert')}"


def _scaled(image: np.ndarray) -> np.ndarray:
    return (image.astype(np.float32) / 127.5 - 1)[None]


def in_numpy(path: Path) -> Raw:
    interpreter = Interpreter(path)

    def run(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes, logits = interpreter.run(_scaled(image))
        return codes[0], logits[0]

    return run


class Ours:
    """The workload with its weights, on one device in float32."""

    def __init__(self, data_dir: Path) -> None:
        recipe = making.choose("objectron", "mini", "cpu", ["--config.precision=float32"], kind=Objectron)
        self.workload = recipe.make_with_data(data_dir, synthetic=False, prepare=False)
        state = trained.with_the_data(Objectron).load(self.workload, mesh.single_device_layout())

        @jax.jit
        def run(image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            codes, logits = self.workload.raw(state, image[None])
            return codes[0], logits[0], self.workload.detect(codes, logits).rows()[0]

        self._run = run

    def __call__(self, image: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], Found]:
        """The raw outputs, as `Raw` has them, and what is found."""
        codes, logits, rows = (np.asarray(x) for x in self._run(image))
        found = [
            (objectron.CLASSES[int(label) - 1], score, corners)
            for *corners, score, label in rows.tolist()
            if label and score > _TOLD
        ]
        return (codes[:, [1, 0, 3, 2]], logits), found


def difference(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """The largest of the two outputs' differences, in parts of the other's largest number."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(one, other, strict=True))


def same(one: Found, other: Found) -> bool:
    """The same classes, scores and places to .001; those of nearly one score may change places."""
    if len(one) != len(other):
        return False
    left = list(other)
    for name, score, corners in one:
        near = [
            row
            for row in left
            if row[0] == name
            and abs(row[1] - score) < 1e-3
            and np.abs(np.subtract(row[2], corners)).max() < 1e-3
        ]
        if not near:
            return False
        left.remove(near[0])
    return True


def _rounded(found: Found) -> Found:
    return [(name, round(score, 4), [round(c, 4) for c in corners]) for name, score, corners in found]


def measured(data_dir: Path, record: bool) -> dict[str, Any]:
    """Everything that is written down."""
    ours = Ours(data_dir)
    dataset, path = ours.workload.dataset, ours.workload.weights_file
    images = [dataset.read_eval(np.array([i]), ["image"])["image"][0] for i in range(dataset.num_eval)]
    outputs, found = zip(*map(ours, images), strict=True)
    facts: dict[str, Any] = {}
    if record:
        google, version = litert(path)
        theirs = [google(image) for image in images]
        answers = {name: _rounded(plain_boxes(*raw)) for name, raw in zip(dataset.names, theirs, strict=True)}
        _ANSWERS.write_text(_text({"by": version, "answers": answers}, "answers"))
        facts["from LiteRT, relative"] = max(map(difference, outputs, theirs))
    numpy = in_numpy(path)
    facts["from NumPy in float64, relative"] = max(
        difference(one, numpy(image)) for one, image in zip(outputs, images[:_IN_NUMPY], strict=False)
    )
    recorded = json.loads(_ANSWERS.read_text())
    answers = {name: [(n, s, c) for n, s, c in rows] for name, rows in recorded["answers"].items()}
    facts["photographs answered as recorded"] = sum(map(same, found, (answers[n] for n in dataset.names)))
    told = {name: _rounded(rows) for name, rows in zip(dataset.names, found, strict=True)}
    _draw(images, dataset.names, told)
    return {
        "command": records.command("objectron"),
        "machine": records.machine_in_words(),
        "versions": records.versions("jax", "jaxlib", "numpy"),
        "recorded_by": recorded["by"],
        "photographs": len(images),
        **facts,
        "found": told,
    }


def _text(record: dict[str, Any], rows: str) -> str:
    """The record, of its entry `rows` a photograph a line."""
    head = json.dumps({key: value for key, value in record.items() if key != rows}, indent=1)[:-2]
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in record[rows].items())
    return f'{head},\n "{rows}": {{\n{lines}\n }}\n}}\n'


def _draw(images: Sequence[np.ndarray], names: Sequence[str], found: dict[str, Found]) -> None:
    from PIL import Image

    sheet = Image.new("RGB", (objectron.SIZE * len(_DRAWN), objectron.SIZE))
    for i, name in enumerate(_DRAWN):
        boxes = [(tuple(corners), f"{label} {score:.2f}") for label, score, corners in found[name]]
        drawn = drawing.draw(images[names.index(name)], [], boxes)  # type: ignore[arg-type]
        sheet.paste(Image.open(io.BytesIO(drawn)), (objectron.SIZE * i, 0))
    sheet.save(HERE / "objectron.jpg", quality=85)


def page(record: dict[str, Any]) -> str:
    """The record as a page for people."""
    found: dict[str, Found] = record["found"]
    named = [name for name in _NAMED if found[name] and found[name][0][0] == _NAMED[name]]
    lines = [
        "# What MediaPipe's detector finds on photographs",
        "",
        f"`{record['command']}` on {record['machine']}, jax {record['versions']['jax']}; numbers in "
        "[objectron.json](objectron.json). SSD on MobileNet v2 for 23 of Open Images's classes, from npm's `@mediapipe/objectron` "
        "0.4.1675468480 (Apache-2.0), on eight photographs of scikit-image 0.26.0 and 33 of GCompris 3.1. mini: not MLPerf's data or "
        "model.",
        "",
        f"- Raw outputs, in parts of the largest: {record['from LiteRT, relative']:.1e} from {record['recorded_by']}, Google's interpreter, "
        f"on all photographs; {record['from NumPy in float64, relative']:.1e} from NumPy in float64, operator by operator, on the first.",
        f"- Of {record['photographs']} photographs {record['photographs answered as recorded']} have the answers (classes, scores and places to .001) "
        f"that {record['recorded_by']}'s outputs have, when plain Python makes boxes of them.",
        "- Nobody annotated the photographs: how good the detector is on them is not measured. "
        f"{len(_NAMED)} of them are called after something that it knows; of those {len(named)} have it as their best answer "
        f"({', '.join(name.rpartition('/')[2] for name in named)}). Of what it does not know it makes what it knows, as a "
        "bison Cattle.",
        "",
        f"![{', '.join(_DRAWN)}](objectron.jpg)",
        "",
        "Drawn with a score of .3 or more. Photographs: astronaut, NASA, public domain; chelsea, Stefan van der Walt, CC0; coffee, Rachel "
        "Michetti, CC0; all three as scikit-image has them, stretched to 300 x 300.",
        "",
        "| photograph | found: score |",
        "|---|---|",
        *(
            f"| {name} | {', '.join(f'{label} {score:.2f}' for label, score, _ in rows) or '-'} |"
            for name, rows in found.items()
        ),
    ]
    if served := record.get("served"):
        before, after = served["load_average"]
        lines += [
            "",
            "## Served",
            "",
            f"`{served['command']}`; load average {before} before and {after} after, one busy core being 1. SingleStream's p90 and "
            "MultiStream's p99 are early stopping's; Server found its rate itself. The quality is agreement with the recorded answers.",
            "",
            record_convergence.served_table(served).rstrip("\n"),
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="ask LiteRT, and keep what it answers")
    parser.add_argument(
        "--serve", action="store_true", help="measure the four scenarios, and keep the rest of the record"
    )
    parser.add_argument("--page", action="store_true", help="only write the page of the last record")
    parser.add_argument("--data_dir", type=Path, default=input_pipelines.default_data_dir())
    arguments = parser.parse_args()
    path = HERE / "objectron.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    if arguments.serve:
        with tempfile.TemporaryDirectory() as results:
            extra = [f"--data_dir={arguments.data_dir}", f"--results_dir={results}"]
            record["served"] = record_convergence.serve("objectron", _SECONDS, extra)
    elif not arguments.page:
        record = record | measured(arguments.data_dir, arguments.record)
    path.write_text(_text(record, "found"))
    (HERE / "objectron.md").write_text(page(record))
    print({key: value for key, value in record.items() if key not in ("found", "machine", "versions")})
    return 0


if __name__ == "__main__":
    sys.exit(main())
