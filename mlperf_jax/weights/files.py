"""Published files of weights, by what they hold and not by what they are called; and our own form of them.

Ours is a folder of `weights.safetensors`, names dotted as in the state, and `weights.json`: whose
weights these are, from which file, and the config that goes with them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_jax.errors import Refused, UserError
from mlperf_jax.nested import flatten, tupled
from mlperf_jax.results.folders import read_json, write_json
from mlperf_jax.weights import (
    budget,
    caffe2_file,
    gguf_file,
    numpy_file,
    onnx_file,
    safetensors_file,
    tensorflow_file,
    tensorflow_graph,
    tflite_file,
    torch_file,
)
from mlperf_jax.weights.lazy import LazyArray, finite, said_of
from mlperf_jax.workload import State

_DEEPEST = 64  # dicts within each other


def named(name: str, data_dir: Path) -> Path:
    """Where a config's file of weights is: as named, or else in DATA_DIR/weights. It need not be there."""
    given = Path(name).expanduser()
    return given if given.exists() else data_dir / "weights" / given


def read_tensors(path: Path) -> dict[str, LazyArray]:
    """The arrays of a file of PyTorch, safetensors, NumPy (.npz), Caffe2 (.pkl), ONNX, GGUF or TensorFlow (.index, .pb, .tflite), one by one.

    Of a folder those of all its .safetensors files. They are read when they are asked for.

    Raises:
        UserError: it is none of these, damaged, or hostile; and when an array is read that holds NaN or
            infinite numbers.
    """
    with said_of(path):
        if path.is_dir():
            return _of_folder(path)
        if not path.is_file():
            raise UserError(
                f"There is no file {path}; give a .pth, .safetensors, .npz, .pkl, .onnx, .gguf, .index, .pb or .tflite file."
            )
        return {name: finite(name, array) for name, array in _read(path).items()}


def _of_folder(folder: Path) -> dict[str, LazyArray]:
    found: dict[str, LazyArray] = {}
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise UserError(
            f"There are no .safetensors files in {folder}; give a folder of them, or a file of weights."
        )
    for path in paths:
        arrays = read_tensors(path)
        if both := found.keys() & arrays.keys():
            raise Refused(f"two of its files have an array {min(both)!r}")
        found |= arrays
    return found


def _read(path: Path) -> dict[str, LazyArray]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        file.seek(max(size - 8, 0))
        end = file.read(8)
    if end == tensorflow_file.MAGIC:
        return tensorflow_file.read(path)  # whose arrays lie in other files
    if start[:4] == gguf_file.MAGIC:
        return budget.held(gguf_file.read(path), size)
    if start[4:8] == tflite_file.MAGIC:  # before zip archives, one of which may lie behind it
        return budget.held(tflite_file.read(path), size)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            is_numpy = all(name.endswith(".npy") for name in archive.namelist())
        return budget.held(numpy_file.read(path) if is_numpy else torch_file.read(path), size)
    if start[8:9] == b"{":  # after the length of its JSON header
        return budget.held(safetensors_file.read(path), size)
    if start[:3] == caffe2_file.START:
        return budget.held(caffe2_file.read(path), size)
    if start[:1] == b"\x80":  # the opcode that every pickle of PyTorch's begins with
        return budget.held(torch_file.read(path), size)
    if start[:1] == tensorflow_graph.START:
        return budget.held(tensorflow_graph.read(path), size)
    return budget.held(onnx_file.read(path), size)


@dataclasses.dataclass(frozen=True)
class Imported:
    """Weights in our own form.

    Attributes:
        state: what inference needs of a workload's state, NumPy's arrays or lazy ones.
        workload: the name of the workload.
        config: dotted key -> value, what the workload's config must have for them.
        source: the published file's name, its SHA-256 and how many arrays it held.
    """

    state: State
    workload: str
    config: Mapping[str, Any]
    source: Mapping[str, Any]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(folder: Path, weights: Imported) -> None:
    """Writes `folder`; the description comes last, so that what has one is whole.

    Lazy arrays are read here: what is wrong with one leaves the folder as it was.

    Raises:
        UserError: it cannot be written, or an array cannot be read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".weights.")
        os.close(handle)
        try:
            safetensors_file.write(Path(temporary), flatten(weights.state))
            os.chmod(temporary, 0o644)
            (folder / "weights.json").unlink(missing_ok=True)
            os.replace(temporary, folder / "weights.safetensors")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}; give another --to.") from None
    record = {"workload": weights.workload, "config": dict(weights.config), "source": dict(weights.source)}
    write_json(folder / "weights.json", record | {"sha256": sha256(folder / "weights.safetensors")})


def load(folder: Path) -> Imported:
    """What `save` wrote, its arrays to be read one by one.

    Raises:
        UserError: it is missing, damaged, or was changed; and when an array is read, as `read_tensors`.
    """
    if not (folder / "weights.json").is_file():
        raise UserError(
            f"There are no imported weights in {folder}; make them with "
            "`python -m mlperf_jax.import_weights --workload=... --from=FILE --to=DIR`."
        )
    record = read_json(folder / "weights.json")
    path = folder / "weights.safetensors"
    if not path.is_file() or sha256(path) != record.get("sha256"):
        raise UserError(f"{path} is not what weights.json describes; import the weights again.")
    with said_of(path):
        arrays = budget.held(safetensors_file.read(path), path.stat().st_size)
        state = _nested({name: finite(name, array) for name, array in arrays.items()})
    try:
        config = {key: tupled(value) for key, value in record["config"].items()}
        return Imported(state, record["workload"], config, record["source"])
    except (KeyError, AttributeError, RecursionError):
        raise UserError(f"{folder / 'weights.json'} is damaged; import the weights again.") from None


def _nested(arrays: Mapping[str, LazyArray]) -> State:
    """Arrays by dotted names as dicts within dicts."""
    state: State = {}
    for name, array in arrays.items():
        *place, last = name.split(".", _DEEPEST)
        part = state
        for key in place:
            part = part.setdefault(key, {})
            if not isinstance(part, dict):
                raise Refused(f"its array {name!r} lies in another one")
        part[last] = array
    return state
