"""The answers that LoadGen logged, read back from `mlperf_log_accuracy.json`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mlperf_jax.errors import UserError


def read_answers(path: Path, total_count: int) -> tuple[np.ndarray, list[bytes]]:
    """Each sample's answer.

    Args:
        path: the accuracy log of a run in accuracy mode.
        total_count: how many samples there are; each must have been answered.

    Returns:
        [N] int64 sample indices, ascending, and as many answers.

    Raises:
        UserError: the log is damaged or not complete.
    """
    try:
        entries = json.loads(path.read_text())
        answers = {int(entry["qsl_idx"]): bytes.fromhex(entry["data"]) for entry in entries}
    except (ArithmeticError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no accuracy log ({error}); run --mode=accuracy again.") from error
    if sorted(answers) != list(range(total_count)):
        raise UserError(
            f"{path} has answers to {len(answers)} of {total_count} samples; run --mode=accuracy again."
        )
    return np.arange(total_count), [answers[index] for index in range(total_count)]
