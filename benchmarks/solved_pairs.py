"""What SmolLM2 says of the evaluated summaries before it is tuned: as it is, and with solved pairs in its prompt.

    JAX_PLATFORMS=cpu python -m benchmarks.solved_pairs

prints the evaluation loss of `llama2_70b_lora`'s mini without any change of the weights, and that behind two pairs of the train set,
the same two for all, each followed by an end: what a longer prompt gives for nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

import input_pipelines
from mlperf_jax import making
from mlperf_jax.parallel.mesh import single_device_layout
from mlperf_jax.training.engine import Engine
from mlperf_jax.workloads.low_rank_tuning import Llama2LowRank

Rows = dict[str, np.ndarray]


def behind(pairs: Sequence[np.ndarray], rows: Rows) -> Rows:
    """Rows whose prompt has these tokens before it, of which none is asked for."""
    before = np.concatenate([*pairs, np.zeros(0, np.int32)])
    count = len(rows["tokens"])
    return {
        "tokens": np.concatenate([np.tile(before, (count, 1)), rows["tokens"]], 1),
        "told": np.concatenate([np.zeros((count, len(before)), np.uint8), rows["told"]], 1),
    }


def solved(rows: Rows) -> list[np.ndarray]:
    """Of train rows what goes up to the last token that is asked for, which is their end."""
    lengths = rows["told"].shape[1] - np.argmax(rows["told"][:, ::-1], 1)
    return [tokens[:length] for tokens, length in zip(rows["tokens"], lengths, strict=True)]


def main(data_dir: Path, num_pairs: Sequence[int] = (0, 2)) -> dict[int, float]:
    """Prints and returns the loss by the number of pairs."""
    workload = making.choose("llama2_70b_lora", "mini", "cpu", [], kind=Llama2LowRank).make_with_data(
        data_dir, synthetic=False, prepare=True
    )
    engine = Engine(workload, single_device_layout())
    nothing = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), engine.state["params"])
    state = {"params": nothing, "model_state": {}} | engine.frozen(0)
    answer = jax.jit(workload.predict)
    evaluated = workload.dataset.read_eval(np.arange(workload.num_eval), ["tokens", "told"])
    found = {}
    for number in num_pairs:
        pairs = [] if not number else solved(workload.dataset.read_train(0, number, seed=0))
        rows = behind(pairs, evaluated)
        losses = [
            np.asarray(answer(workload.served_state(state), {name: x[i : i + 8] for name, x in rows.items()}))
            for i in range(0, workload.num_eval, 8)
        ]
        found[number] = float(np.concatenate(losses).mean(dtype=float))
        print(f"{number} solved pairs in the prompt: evaluation loss {found[number]:.3f}", flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", type=Path, default=input_pipelines.default_data_dir())
    main(parser.parse_args().data_dir)
