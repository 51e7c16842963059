"""Turns published weights into a workload's parameters, for `--weights`.

    python -m mlperf_jax.import_weights --workload=resnet50 --from=resnet50-19c8e357.pth --to=weights/resnet50
    python -m mlperf_jax.main --workload=resnet50 --platform=gpu --scenario=Offline --weights=weights/resnet50

The file may be a PyTorch state dict (.pth), .safetensors, .npz, .onnx, or a TensorFlow checkpoint's .index. Nothing in it is executed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mlperf_jax import cli
from mlperf_jax import config as configs
from mlperf_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("workload", None, "Whose weights these are.", flag_values=FLAGS)
flags.DEFINE_string("from", None, "The published file.", flag_values=FLAGS)
flags.DEFINE_string("to", None, "Folder to write; default weights/<workload>.", flag_values=FLAGS)
flags.DEFINE_enum("preset", "closed", configs.PRESETS, "Which model they are for.", flag_values=FLAGS)
flags.DEFINE_bool("help", False, "Show this, and end.", flag_values=FLAGS)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, or 2 where there is something to mend."""
    return cli.run("mlperf_jax.import_weights", _command, argv)


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments)
    if FLAGS.help:
        print(cli.help_text(__doc__, FLAGS, config=True))
        return 0
    for name in ("workload", "from"):
        if not FLAGS[name].value:
            raise UserError(f"--{name} is missing, as in --workload=resnet50 --from=resnet50-19c8e357.pth.")
    folder = Path(FLAGS.to or f"weights/{FLAGS.workload}")
    print(import_weights(FLAGS.workload, FLAGS.preset, Path(FLAGS["from"].value), folder, overrides))
    return 0


def import_weights(
    workload: str, preset: str, source: Path, folder: Path, overrides: Sequence[str] = ()
) -> str:
    """Reads `source`, writes `folder`, and says in a sentence what it wrote.

    Raises:
        UserError: the file cannot be read, or is of another model.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only shapes are computed, on no device
    import jax

    from mlperf_jax import workload as registry
    from mlperf_jax.precision import resolve_policy
    from mlperf_jax.weights import files

    cls = registry.find(workload)
    config = configs.resolve(configs.base_config(workload, preset), list(overrides))
    found = cls(config, resolve_policy("float32", "cpu"), data_dir=Path())
    tensors = files.read_tensors(source)
    state, changes = found.import_weights(tensors)
    origin = {"file": source.name, "sha256": files.sha256(source), "arrays": len(tensors)}
    files.save(folder, files.Imported(state, workload, changes, origin))
    count = sum(array.size for array in jax.tree.leaves(state["params"]))
    return f"{count:,} parameters of {source.name} lie in {folder}; measure them with --weights={folder}."


if __name__ == "__main__":
    sys.exit(main())
