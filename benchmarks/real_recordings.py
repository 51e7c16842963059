"""What a mini of speech recognition, which heard synthetic voices alone, hears in recordings of people.

    python -m benchmarks.real_recordings --workload=rnnt --results_dir=results     # of the newest trained run there

Recordings are those of two Debian packages, fetched: the numbers and strings of four digits joined from them in
`asterisk-core-sounds-en-wav` (one woman, 8 kHz, CC-BY-SA 3.0), and the English letters of `klettres-data` (44.1 kHz, GPL). They are
no part of any data set. Figures go into real_recordings.json and real_recordings.md.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import soundfile

import input_pipelines
from benchmarks import records
from input_pipelines import fetch
from input_pipelines.sound.spoken_sentences import at_16_khz
from input_pipelines.sound.utterances import SAMPLE_RATE
from mlperf_jax.inference import trained
from mlperf_jax.inference.options import InferOptions
from mlperf_jax.metrics.word_error_rate import word_error_rate
from mlperf_jax.parallel import mesh
from mlperf_jax.workload import State
from mlperf_jax.workloads.speech_recognition import SpeechRecognition

HERE = Path(__file__).parent
_DIGITS = fetch.PinnedTree(
    ("digits/*.wav",), 94, "1b15dc92b85b398efea463d86481bfd3d85f8a0618578303685180a132075b4d"
)
_LETTERS = fetch.PinnedTree(
    ("alpha/*.ogg",), 26, "345107c9a07caff678439eb169028860eb6fba304a93c7b6c38f5486729c7878"
)
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_STRINGS, _LONG = 50, 4
_BATCH = 32

_INTRODUCTION = (
    "Trained on synthetic voices alone, and on other words: these are no targets, they say how far such a model is from people's",
    "speech. Numbers and strings joined from them: Debian's asterisk-core-sounds-en-wav; letters: klettres-data.",
)

Recordings = list[tuple[str, np.ndarray]]
"""What is said, and [S] int16 at 16 kHz."""


def spoken_number(name: str) -> str | None:
    """What is said in the recording of a number: "17" -> "seventeen"; None of other recordings."""
    if not name.isdecimal():
        return None
    number = int(name)
    return _ONES[number] if number < 20 else _TENS[number // 10 - 2]


def joined(numbers: Mapping[str, np.ndarray], count: int = _STRINGS, length: int = _LONG) -> Recordings:
    """So many strings of digits, drawn from a fixed seed, of recordings of "0" to "9"."""
    drawn = np.random.default_rng(0).integers(10, size=(count, length))
    return [
        (" ".join(_ONES[n] for n in row), np.concatenate([numbers[str(n)] for n in row]))
        for row in drawn.tolist()
    ]


def _read(content: bytes) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(content), dtype="int16", always_2d=True)
    return at_16_khz(samples[:, 0], rate)


def _tree(package: str, inside: str, tree: fetch.PinnedTree) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        files = fetch.fetch_tree(package, tree, [fetch.debian_tree(package, inside)], Path(scratch))
    return {Path(path).stem: content for path, content in files.items()}


def recordings() -> dict[str, Recordings]:
    """All of them, by what they are.

    Raises:
        UserError: a package could not be had.
    """
    inside = "usr/share/asterisk/sounds/en_US_f_Allison"
    digits = _tree("asterisk-core-sounds-en-wav", inside, _DIGITS)
    numbers = {name: _read(content) for name, content in digits.items() if spoken_number(name)}
    letters = _tree("klettres-data", "usr/share/klettres/en", _LETTERS)
    return {
        "numbers": [(str(spoken_number(name)), sound) for name, sound in numbers.items()],
        "strings of four digits": joined(numbers),
        "letters": [(name.lower(), _read(content)) for name, content in letters.items()],
    }


def heard(workload: SpeechRecognition, state: State, sounds: Sequence[np.ndarray]) -> list[str]:
    """What the model hears in each of recordings, all in the longest bucket's shape."""
    width = workload.dataset.buckets[-1].samples

    @jax.jit
    def transcribe(samples: jax.Array, lengths: jax.Array) -> jax.Array:
        return workload.transcribe(workload.model(state), samples, lengths)

    texts: list[str] = []
    for first in range(0, len(sounds), _BATCH):
        part = sounds[first : first + _BATCH]
        rows = np.zeros((_BATCH, width), np.int16)
        lengths = np.full(_BATCH, SAMPLE_RATE, np.int32)
        for n, sound in enumerate(part):
            lengths[n] = min(len(sound), width)
            rows[n, : lengths[n]] = sound[:width]
        found = np.asarray(transcribe(rows, lengths))
        texts += [workload.logged_answer(0, row).decode() for row in found[: len(part)]]
    return texts


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", required=True, choices=("rnnt", "deepspeech2"))
    parser.add_argument("--results_dir", type=Path, default=Path("results"))
    parser.add_argument("--data_dir", type=Path, default=input_pipelines.default_data_dir())
    parser.add_argument("--out", type=Path, default=HERE)
    flags = parser.parse_args(argv)
    options = InferOptions(flags.workload, "mini", "cpu", flags.results_dir, data_dir=flags.data_dir)
    opened, model = trained.open_model(options)
    workload = cast("SpeechRecognition", opened)
    state = model.load(workload, mesh.single_device_layout())
    figures = {}
    for name, said in recordings().items():
        references = [text for text, _ in said]
        texts = heard(workload, state, [sound for _, sound in said])
        rate = word_error_rate(texts, references)
        figures[name] = {
            "recordings": len(said),
            "word_error_rate": round(rate, 4),
            "examples": [{"said": r, "heard": t} for r, t in list(zip(references, texts, strict=True))[:5]],
        }
        print(f"{name}: word error rate {rate:.3f} of {len(said)} recordings", flush=True)
    path = flags.out / "real_recordings.json"
    record: dict[str, Any] = (
        json.loads(path.read_text()) if path.exists() else {"schema_version": 1, "workloads": {}}
    )
    record["workloads"][flags.workload] = {
        "command": records.command("real_recordings"),
        "model": model.description,
        "quality": model.quality,
        "figures": figures,
    }
    records.write(path, record)
    path.with_suffix(".md").write_text(page(record))
    return 0


def page(record: Mapping[str, Any]) -> str:
    """The record for people."""
    lines = ["# What minis of speech recognition hear in recordings of people", "", *_INTRODUCTION, ""]
    for workload, entry in record["workloads"].items():
        lines += [f"## {workload}", "", "```", entry["command"], "```", ""]
        lines += ["| recordings | of them | word error rate | said: heard |", "|---|---|---|---|"]
        for name, found in entry["figures"].items():
            examples = "; ".join(f"{pair['said']}: {pair['heard'] or '-'}" for pair in found["examples"])
            lines.append(f"| {name} | {found['recordings']} | {found['word_error_rate']:.3f} | {examples} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
