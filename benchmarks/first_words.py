"""How well the beginnings of Debian's descriptions sum them up: what `llama2_70b_lora`'s mini has to beat when it is served.

    JAX_PLATFORMS=cpu python -m benchmarks.first_words

prints ROUGE-1, -2 and -L of the first sentence and of the first eight words of each description that is evaluated, against its
summary, scored as the model's answers are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import input_pipelines
from input_pipelines.text.debian_descriptions import prompt
from mlperf_jax import making
from mlperf_jax.metrics import rouge
from mlperf_jax.workloads.generation import ServedLlama2LowRank

BEGINNINGS: dict[str, Callable[[str], str]] = {
    "first sentence": lambda text: text.split(". ")[0],
    "first eight words": lambda text: " ".join(text.split()[:8]),
}


def main(data_dir: Path) -> dict[str, dict[str, float]]:
    """Prints and returns the figures of each kind of beginning."""
    workload = making.choose("llama2_70b_lora", "mini", "cpu", [], kind=ServedLlama2LowRank).make_with_data(
        data_dir, synthetic=False, prepare=True
    )
    before, behind = prompt("\0").split("\0")
    pairs = [
        (given.removeprefix(before).removesuffix(behind), true)
        for given, true in map(workload.sample_texts, range(workload.num_samples))
    ]
    found = {}
    for name, beginning in BEGINNINGS.items():
        found[name] = rouge.score([beginning(given) for given, _ in pairs], [true for _, true in pairs])
        figures = ", ".join(
            f"{kind.replace('rouge', 'ROUGE-')} {found[name][kind]:.2f}" for kind in rouge.FIGURES
        )
        print(f"{name}: {figures}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", type=Path, default=input_pipelines.default_data_dir())
    main(parser.parse_args().data_dir)
