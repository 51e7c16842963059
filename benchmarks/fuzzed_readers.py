"""Every reader of files that others wrote, with a small valid file of each kind."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import importlib.util
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from benchmarks import gguf_writer, tflite_graph
from benchmarks.fuzzing import Reader
from input_pipelines import fetch, prepared, tfrecord
from input_pipelines.clicks import criteo_multihot, criteo_text, pickled_frame
from input_pipelines.image import coco_originals, fashion_mnist, qt_resources
from input_pipelines.ratings import tables
from input_pipelines.text import subwords
from input_pipelines.volumes import nifti
from loadgen_py import conf
from loadgen_py.settings import TestSettings
from mlperf_jax.errors import Refused, UserError
from mlperf_jax.go import records
from mlperf_jax.results import curves, folders
from mlperf_jax.results import events as own_events
from mlperf_jax.rounds import descriptions, inference_logs, log_lines, training_logs
from mlperf_jax.weights import files, safetensors_file, tensorflow_file

ARRAYS: dict[str, np.ndarray] = {
    "fc.bias": np.arange(3, dtype=np.float32),
    "fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "steps": np.array(7, np.int64),
}


def readers() -> list[Reader]:
    """All readers; the pickled table is left out where there is no pandas to write it."""
    weights = WEIGHTS | {"graph.onnx": _write_onnx_graph, "tflite": _write_tflite, "gguf": _write_gguf}
    found = [Reader(name, _writer(write, name), _read_weights) for name, write in weights.items()]
    found += [
        Reader("weights.json", _write_imported, lambda path: files.load(path.parent)),
        Reader("sgf", _text("a.sgf", _SGF), records.read, (UserError, records.BadRecord)),
        Reader("training log", _text("result_0.txt", _TRAINING_LOG), training_logs.read_run),
        Reader("lines of a log", _text("result_0.txt", _TRAINING_LOG), log_lines.read_events),
        Reader("own log", _text("result_0.txt", _TRAINING_LOG), own_events.read_events),
        Reader("LoadGen's log", _text(inference_logs.DETAIL, _DETAIL), _read_inference),
        Reader("conf", _text("user.conf", _CONF), _read_conf),
        Reader("COCO", _text("instances.json", _COCO), _read_coco),
        Reader("system", _text("system.json", _SYSTEM), descriptions.read_system),
        Reader("status", _text("status.json", _STATUS), folders.read_json),
        Reader("manifest", _write_manifest, lambda path: prepared.read_manifest(path.parent)),
        Reader("vocabulary", _text("vocab.txt", _VOCABULARY), subwords.read),
        Reader("TensorBoard", _write_events, lambda path: curves.read_evaluations(path.parent)),
        Reader("IDX", _writer(_write_idx), _of_bytes(fashion_mnist.parse_idx), (ValueError,)),
        Reader("NIfTI", _writer(_write_nifti, "nii"), nifti.read),
        Reader("packed NIfTI", _writer(_write_packed_nifti, "nii.gz"), nifti.read),
        Reader("Qt's resources", _writer(_write_qt), _of_bytes(qt_resources.parse), (ValueError,)),
        Reader("tar", _writer(_write_tar), _read_tar, (fetch.SourceError,)),
        Reader(
            "Criteo's text",
            _writer(_write_criteo, "gz"),
            lambda path: _read_criteo(path),
            (ValueError, UserError),
        ),
        Reader("ratings", _text("ratings.csv", _RATINGS), _read_ratings, (ValueError,)),
        Reader("multi-hot npz", _writer(_write_tables), _read_tables),
        Reader("TFRecords", _writer(_write_records), _read_records, (Refused, UserError)),
    ]
    if importlib.util.find_spec("pandas"):
        found.append(Reader("pickled table", _writer(_write_frame), _of_bytes(pickled_frame.read)))
    return found


def _writer(write: Callable[[Path], None], suffix: str = "bin") -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        path = folder / f"x.{suffix}"
        write(path)
        return path

    return made


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        (folder / name).write_text(text, "utf-8")
        return folder / name

    return made


def _of_bytes(parse: Callable[[bytes], object]) -> Callable[[Path], object]:
    return lambda path: parse(path.read_bytes())


def _read_weights(path: Path) -> None:
    for array in files.read_tensors(path).values():
        np.asarray(array)


# A state dict as torch.save pickles it, protocol 2, without PyTorch.
_ORDERED = b"ccollections\nOrderedDict\n)R"


def _pickled_text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _pickled_ints(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t"


def state_dict(arrays: Mapping[str, np.ndarray], *, is_old: bool = False) -> bytes:
    """The pickle; storages are named 0, 1, ... in the arrays' order."""
    out = b"\x80\x02" + _ORDERED + b"("
    for i, (name, array) in enumerate(arrays.items()):
        kind = {"float32": "FloatStorage", "int64": "LongStorage"}[str(array.dtype)].encode()
        count = b"J" + struct.pack("<i", array.size)
        out += _pickled_text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + _pickled_text("storage")
        out += b"ctorch\n" + kind + b"\n" + _pickled_text(str(i)) + _pickled_text("cpu") + count
        out += (b"Nt" if is_old else b"t") + b"QK\0" + _pickled_ints(array.shape)
        strides = tuple(s // array.itemsize for s in array.strides)
        out += _pickled_ints(strides) + b"\x89" + _ORDERED + b"tR"
    return out + b"u."


def write_torch(path: Path, arrays: Mapping[str, np.ndarray] = ARRAYS) -> None:
    """As torch.save since 1.6."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", state_dict(arrays))
        archive.writestr("x/byteorder", "little")
        for i, array in enumerate(arrays.values()):
            archive.writestr(f"x/data/{i}", array.tobytes())


def _write_old_torch(path: Path) -> None:
    out = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    out += pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
    out += state_dict(ARRAYS, is_old=True) + pickle.dumps([str(i) for i in range(len(ARRAYS))], 2)
    for array in ARRAYS.values():
        out += struct.pack("<q", array.size) + array.tobytes()
    path.write_bytes(out)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def _write_onnx(path: Path) -> None:
    kinds = {"float32": 1, "int64": 7}
    graph = b""
    for name, array in ARRAYS.items():
        shape = b"".join(field(1, n) for n in array.shape)
        numbers = field(9, array.tobytes()) if array.ndim else field(7, varint(int(array)))
        graph += field(5, shape + field(2, kinds[str(array.dtype)]) + field(8, name.encode()) + numbers)
    graph += field(1, field(1, b"x") + field(1, b"fc.weight") + field(3, b"/fc/Gemm") + field(4, b"Gemm"))
    path.write_bytes(field(1, 8) + field(7, graph))


def _write_onnx_graph(path: Path) -> None:
    """Layers without names, of which one has a batch norm after it."""

    def tensor(name: str, *shape: int) -> bytes:
        array = np.ones(shape, np.float32)
        sizes = b"".join(field(1, n) for n in shape)
        return field(5, sizes + field(2, 1) + field(8, name.encode()) + field(9, array.tobytes()))

    def node(operator: bytes, out: bytes, *inputs: bytes, more: bytes = b"") -> bytes:
        reads = b"".join(field(1, name) for name in inputs)
        return field(1, reads + field(2, out) + field(3, out) + field(4, operator) + more)

    epsilon = field(5, field(1, b"epsilon") + bytes([2 << 3 | 5]) + struct.pack("<f", 1e-3))
    graph = tensor("w", 2, 3, 1, 1) + tensor("s", 2) + tensor("m", 2, 4) + tensor("b", 4)
    graph += node(b"Conv", b"y", b"x", b"w") + node(
        b"BatchNormalization", b"z", b"y", *[b"s"] * 4, more=epsilon
    )
    graph += node(b"Relu", b"r", b"z") + node(b"MatMul", b"l", b"r", b"m") + node(b"Add", b"a", b"l", b"b")
    path.write_bytes(field(1, 8) + field(7, graph))


def _write_gguf(path: Path) -> None:
    blocks = gguf_writer.Array((2, 32), gguf_writer.Q4_1, bytes(range(40)))
    plain = gguf_writer.Array((3,), gguf_writer.F32, np.ones(3, "<f4").tobytes())
    gguf_writer.write(path, {"general.name": "x", "tokens": ["a", "b"]}, {"a.weight": blocks, "b": plain})


def _write_tflite(path: Path) -> None:
    """Two layers, one of them depthwise, and their sum with the input."""
    graph = tflite_graph.Graph(1, 4, 4, 2)
    x = graph.conv(graph.input, np.ones((1, 3, 3, 2)), np.zeros(2), depthwise=True)
    x = graph.conv(x, np.ones((2, 1, 1, 2)), np.ones(2), activation=tflite_graph.NO_ACTIVATION)
    x = graph.operator(tflite_graph.ADD, [x, graph.input], graph.shape(x), {0: ("b", tflite_graph.RELU)})
    graph.write(path, [graph.reshape(x, 1, 32)])


def _write_frozen(path: Path) -> None:
    kinds, graph = {"float32": 1, "int64": 9}, b""
    for name, array in ARRAYS.items():
        shape = field(2, b"".join(field(2, field(1, n)) for n in array.shape))
        tensor = field(1, kinds[str(array.dtype)]) + shape + field(4, array.tobytes())
        value = field(5, field(1, b"value") + field(2, field(8, tensor)))
        graph += field(1, field(1, name.encode()) + field(2, b"Const") + value)
    path.write_bytes(graph)


def _write_tensorflow(path: Path) -> None:
    kinds = {"float32": 1, "int64": 9}
    entries, data = [(b"", field(1, 1))], b""
    for name, array in sorted(ARRAYS.items()):
        shape = b"".join(field(2, field(1, n)) for n in array.shape)
        entry = (
            field(1, kinds[str(array.dtype)]) + field(2, shape) + field(4, len(data)) + field(5, array.nbytes)
        )
        entries.append((name.encode(), entry))
        data += array.tobytes()
    file, handles = b"", b""
    index = [(b"z", b"")]
    for part in (entries, index):
        if part is index:
            part = [(b"z", handles)]
        packed = b"".join(b"\0" + varint(len(k)) + varint(len(v)) + k + v for k, v in part)
        packed += struct.pack("<II", 0, 1)
        handles = varint(len(file)) + varint(len(packed))
        file += packed + b"\0" * 5
    path.write_bytes(file + (b"\0\0" + handles).ljust(40, b"\0") + tensorflow_file.MAGIC)
    path.with_suffix(".data-00000-of-00001").write_bytes(data)


WEIGHTS: dict[str, Callable[[Path], None]] = {
    "pth": write_torch,
    "old.pth": _write_old_torch,
    "npz": lambda path: np.savez(path, allow_pickle=False, **ARRAYS),
    "packed.npz": lambda path: np.savez_compressed(path, allow_pickle=False, **ARRAYS),
    "safetensors": lambda path: safetensors_file.write(
        path, ARRAYS | {"eight": np.ones(3, ml_dtypes.float8_e4m3fn)}
    ),
    "onnx": _write_onnx,
    "index": _write_tensorflow,
    "pb": _write_frozen,
}
"""Kinds of files of weights, and what writes `ARRAYS` as one."""


def _write_imported(folder: Path) -> Path:
    state = {"params": {"w": np.ones(3, np.float32)}}
    files.save(folder, files.Imported(state, "resnet50", {"data.mean": (1.0, 2.0)}, {"file": "x.pth"}))
    return folder / "weights.json"


_SGF = (
    "(;FF[4]GM[1]CA[UTF-8]SZ[9]KM[6.5]PB[A \\] B]RE[B+R]C[two\nlines];B[ee];W[cc](;B[gc];W[tt](;B[])(;B[aa]))"
    "(;B[cg];W[gg]))\n(;SZ[5];B[aa];W[bb])"
)
_TRAINING_LOG = "\n".join(
    [
        "starting",
        ':::MLLOG {"namespace": "", "time_ms": 1594412166346, "event_type": "POINT_IN_TIME", "key": "submission_benchmark",'
        ' "value": "resnet", "metadata": {"file": "x.py", "lineno": 3}}',
        ':::MLLOG {"time_ms": 1594412166347, "event_type": "INTERVAL_START", "key": "run_start", "value": null,'
        ' "metadata": {}}',
        ':::MLLOG {"time_ms": 1594412176347, "event_type": "POINT_IN_TIME", "key": "eval_accuracy", "value": 0.759,'
        ' "metadata": {"epoch_num": 4}}',
        ':::MLLOG {"time_ms": 1594412186347, "event_type": "INTERVAL_END", "key": "run_stop", "value": null,'
        ' "metadata": {"status": "success"}}',
        "",
    ]
)
_DETAIL = "\n".join(
    f':::MLLOG {{"key": "{key}", "value": {json.dumps(value)}, "time_ms": {i}.5, "namespace": "mlperf::logging",'
    f' "event_type": "POINT_IN_TIME", "metadata": {{"is_error": false, "file": "a.cc", "line_no": 1}}}}'
    for i, (key, value) in enumerate(
        {
            "loadgen_version": "5.0",
            "effective_scenario": "Offline",
            "effective_test_mode": "PerformanceOnly",
            "effective_min_duration_ms": 60000,
            "result_samples_per_second": 123.5,
            "result_validity": "VALID",
            "result_99.00_percentile_latency_ns": 123456,
        }.items()
    )
)
_RATINGS = "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,3.5,1112484676\n2,2,4,1112484819\n"

_CONF = "# ours\n*.*.mode = 2\nresnet50.Server.target_qps = 1000.5\n*.Offline.min_duration = 60000\n"
_COCO = json.dumps(
    {
        "images": [{"id": 3, "height": 48, "width": 64, "file_name": "000003.jpg"}],
        "annotations": [
            {
                "image_id": 3,
                "bbox": [1.5, 2, 30, 20.25],
                "area": 600.5,
                "category_id": 18,
                "iscrowd": 0,
                "id": 1,
            }
        ],
    }
)
_SYSTEM = json.dumps(
    {
        "submitter": "acme",
        "division": "closed",
        "status": "Available on-premise",
        "system_name": "x8",
        "number_of_nodes": 2,
        "host_processors_per_node": "2",
        "host_processor_model_name": "EPYC",
        "accelerators_per_node": 8,
        "accelerator_model_name": "V100",
    }
)
_STATUS = json.dumps(
    {"schema_version": folders.SCHEMA_VERSION, "status": "success", "quality": 0.9, "seed": 1}
)
_VOCABULARY = "\n".join(["'<pad>_'", "'<EOS>_'", "'the_'", *(f"'{c}'" for c in "\\u;0123456789_ab")]) + "\n"


def _write_manifest(folder: Path) -> Path:
    (folder / "a.npy").write_bytes(b"1234")
    facts = {"a.npy": {"bytes": 4, "sha256": prepared.sha256_of(folder / "a.npy")}}
    path = folder / "manifest.json"
    path.write_text(json.dumps({"schema_version": prepared.SCHEMA_VERSION, "num_train": 3, "files": facts}))
    return path


def _read_inference(path: Path) -> object:
    return inference_logs.read_run(path.parent, path.parent)


def _read_ratings(path: Path) -> object:
    with open(path, encoding="ascii") as lines:
        return tables.read(lines, ",", (0, 1, 3))


def _read_conf(path: Path) -> object:
    with contextlib.redirect_stderr(io.StringIO()):
        found = TestSettings().FromConfig(str(path), "resnet50", "Server", conf.AUDIT)
    conf.take_pending_errors()
    conf.take_pending_warnings()
    return found


def _read_coco(path: Path) -> object:
    return coco_originals.parse_annotations(path.read_bytes(), "it")


def _write_events(folder: Path) -> Path:
    value = field(1, field(1, b"eval/accuracy") + varint(2 << 3 | 5) + struct.pack("<f", 0.5))
    event = varint(1 << 3 | 1) + struct.pack("<d", 1e9) + field(2, 40) + field(5, value)
    path = folder / "events.out.tfevents.1594412166.host"
    path.write_bytes(struct.pack("<QI", len(event), 0) + event + b"\0\0\0\0")
    return path


def _write_idx(path: Path) -> None:
    path.write_bytes(b"\0\0\x08\x02" + struct.pack(">II", 2, 3) + bytes(6))


def _nifti() -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 2, 3, 4, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<4f", header, 76, 1, 1.5, 1, 1)
    struct.pack_into("<3f", header, 108, 352, 2, -1)
    header[344:348] = b"n+1\0"
    return bytes(header) + bytes(range(48))


def _write_nifti(path: Path) -> None:
    path.write_bytes(_nifti())


def _write_packed_nifti(path: Path) -> None:
    path.write_bytes(gzip.compress(_nifti(), mtime=0))


def _write_qt(path: Path) -> None:
    name = "a.jpg".encode("utf-16-be")
    names = struct.pack(">HI", 5, 0) + name
    tree = struct.pack(">IHIIQ", 0, 2, 1, 1, 0) + struct.pack(">IHIIQ", 0, 0, 1, 0, 0)
    data = struct.pack(">I", 4) + b"JPEG"
    start = 20
    head = b"qres" + struct.pack(">4I", 2, start, start + len(tree), start + len(tree) + len(data))
    path.write_bytes(head + tree + data + names)


def _write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in (("./usr/a.txt", b"one"), ("./usr/b/c.txt", bytes(600))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _read_tar(path: Path) -> object:
    return fetch._tar_files(path.read_bytes(), lambda name: name)


def _write_criteo(path: Path) -> None:
    row = "\t".join(["1", *("3" for _ in range(13)), *("68fd1e64" for _ in range(26))]) + "\n"
    path.write_bytes(gzip.compress((row * 3).encode()))


def _read_criteo(path: Path) -> object:
    return [criteo_text.parse(lines, 1000) for lines in criteo_text.whole_lines(path, 1 << 16)]


def _write_tables(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **{str(i): np.ones((4, i + 1), np.int32) for i in range(2)})


def _read_tables(path: Path) -> object:
    return criteo_multihot._open_tables(path, (1, 2))


def _write_frame(path: Path) -> None:
    pandas = importlib.import_module("pandas")
    with pandas.option_context("future.infer_string", False):
        table = pandas.DataFrame({"a": [1.5, 2.5], "b": [1, 2], "c": np.array(["x", None], object)})
    path.write_bytes(pickle.dumps(table, protocol=5))


def _write_records(path: Path) -> None:
    example = {"ids": np.array([7, 300, -1]), "weights": np.array([0.5, 1], np.float32)}
    path.write_bytes(tfrecord.framed(tfrecord.encode(example)) * 3)


def _read_records(path: Path) -> None:
    starts, _ = tfrecord.offsets(path, 2)
    for start, stop in zip(starts, starts[1:], strict=False):
        for record in tfrecord.block(path, int(start), int(stop)):
            tfrecord.parse(record)
