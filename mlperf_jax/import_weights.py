"""Turns published weights into a workload's parameters, for `--weights`.

    python -m mlperf_jax.import_weights --workload=resnet50 --from=resnet50-19c8e357.pth --to=weights/resnet50
    python -m mlperf_jax.main --workload=resnet50 --platform=gpu --scenario=Offline --weights=weights/resnet50

The file may be a PyTorch state dict (.pth), .safetensors, .npz, .gguf, .onnx, a TensorFlow checkpoint's .index or a frozen
graph (.pb). Nothing in it is executed, and reading it costs time and memory by its size, whatever it says.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mlperf_jax import cli
from mlperf_jax import config as configs
from mlperf_jax.errors import UserError

FLAGS = cli.define(
    cli.text("workload", "Whose weights these are."),
    cli.text("from", "The published file."),
    cli.text("to", "Folder to write; default weights/<workload>."),
    cli.choice("preset", configs.PRESETS, "Which model they are for.", "closed"),
    cli.HELP,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 where there is something to mend."""
    return cli.run(_command, argv)


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments, doc=__doc__)
    given = FLAGS.flag_values_dict()
    for name in ("workload", "from"):
        if not given[name]:
            raise UserError(f"--{name} is missing, as in --workload=resnet50 --from=resnet50-19c8e357.pth.")
    print(_import(FLAGS.workload, FLAGS.preset, Path(given["from"]), FLAGS.to, overrides))
    return 0


def _import(workload: str, preset: str, source: Path, to: str | None, overrides: list[str]) -> str:
    """Reads `source`, writes the folder `to`, and says in a sentence what it wrote."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only shapes are computed, on no device
    import jax

    from mlperf_jax import making
    from mlperf_jax.registry import served
    from mlperf_jax.weights import files
    from mlperf_jax.workload import ServedWorkload

    workload = served(workload)
    folder = Path(to or f"weights/{workload}")
    found = making.choose(
        workload, preset, "cpu", [*overrides, "--config.precision=float32"], kind=ServedWorkload
    ).make()
    tensors = files.read_tensors(source)
    state, changes = found.import_weights(tensors)
    origin = {"file": source.name, "sha256": files.sha256(source), "arrays": len(tensors)}
    files.save(folder, files.Imported(state, workload, changes, origin))
    published = state.get("frozen", state.get("params", state))  # what is tuned beside it is not
    count = sum(array.size for array in jax.tree.leaves(published))
    return f"{count:,} parameters of {source.name} lie in {folder}; measure them with --weights={folder}."


if __name__ == "__main__":
    sys.exit(main())
