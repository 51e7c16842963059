"""Arrays read when they are asked for: any part of them, from any file, and no more memory than that takes."""

import json
import math
import tracemalloc
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import weights_memory
from mlperf_jax.errors import UserError
from mlperf_jax.inference.trained import from_weights
from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.mesh import make_layout
from mlperf_jax.weights import files, lazy, safetensors_file
from tests import toys
from tests.toys_clicks import SmallDCNv2, SmallDLRM
from tests.toys_text import Doubler

WHOLE = slice(None)


@st.composite
def parts(draw, shape):
    bounds = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    return tuple(draw(st.sampled_from([slice(*b), WHOLE])) for b in bounds)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(0, 7), max_size=4), block=st.sampled_from([1, 16, 100, 4096]), data=st.data()
)
def test_any_part_of_a_file_is_what_numpy_cuts(shape, block, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("part") / "x"
    array = np.arange(math.prod(shape), dtype=np.int16).reshape(shape)
    path.write_bytes(b"head" + array.tobytes())
    axes = data.draw(st.permutations(range(len(shape))))
    expected, found = array.transpose(axes), lazy.in_file(path, 4, shape, array.dtype).transpose(*axes)
    assert found.shape == expected.shape and found.nbytes == expected.nbytes
    part = data.draw(parts(expected.shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lazy, "_BLOCK", block)
        np.testing.assert_array_equal(found[part], expected[part])
        turned = found.T.astype(np.float32)
        np.testing.assert_array_equal(turned, expected.T)
        flat = turned.reshape(expected.size)[(slice(1, 5),)]
    assert flat.dtype == np.float32
    np.testing.assert_array_equal(flat, expected.T.reshape(-1)[1:5])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2), st.integers(1, 4), st.integers(1, 4), st.data())
def test_of_an_axis_in_two_only_rows_of_the_first_are_read(axis, outer, inner, data):
    shape = [3, 2, 4]
    shape[axis] = outer * inner
    array = np.arange(math.prod(shape)).reshape(shape)
    expected = array.reshape(*shape[:axis], outer, inner, *shape[axis + 1 :])
    asked = []

    def read(index):
        asked.append(index[axis])
        return array[index]

    found = lazy.parted(lazy.LazyArray(array.shape, array.dtype, read), axis, (outer, inner))
    assert found.shape == expected.shape and found.dtype == expected.dtype
    part = data.draw(parts(expected.shape))
    np.testing.assert_array_equal(found[part], expected[part])
    start, stop, _ = part[axis].indices(outer)
    assert asked == [slice(start * inner, stop * inner)]


def test_arrays_together_are_read_one_by_one():
    asked = []

    def one(number):
        def read(index):
            asked.append(number)
            return np.arange(6).reshape(2, 3)[index] + 10 * number

        return lazy.LazyArray((2, 3), np.int64, read)

    found = lazy.together([one(n) for n in range(4)])
    assert found.shape == (4, 2, 3) and not asked
    expected = np.arange(6).reshape(2, 3) + 10 * np.arange(4)[:, None, None]
    np.testing.assert_array_equal(found[1:3, :, 1:2], expected[1:3, :, 1:2])
    assert asked == [1, 2]
    np.testing.assert_array_equal(found, expected)


def write(kind, path, arrays):
    if kind == "safetensors":
        safetensors_file.write(path, arrays)
    elif kind.endswith("npz"):
        (np.savez_compressed if kind == "packed.npz" else np.savez)(path, **arrays)
    elif kind == "index":
        from tests.weights.test_tensorflow_file import write as write_checkpoint

        write_checkpoint(path, arrays)
    elif kind == "onnx":
        onnx = pytest.importorskip("onnx", reason="writes the file")
        tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], [], tensors)), path)
    else:
        torch = pytest.importorskip("torch", reason="writes the file")
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "pth")


KINDS = ("safetensors", "npz", "packed.npz", "pth", "old.pth", "index", "onnx")


@pytest.mark.parametrize("kind", KINDS)
def test_a_quarter_takes_a_quarters_memory_from_every_file(kind, monkeypatch, tmp_path):
    """Of four processes the first: rows of half of the arrays, columns of the others."""
    monkeypatch.setattr(lazy, "_BLOCK", 2**18)
    path, size = tmp_path / f"x.{kind}", 512 * 2048 * 4
    random = np.random.default_rng(0)
    shapes = [(2048, 512) if i % 2 else (512, 2048) for i in range(8)]
    arrays = {f"w{i}": random.random(shape, np.float32) for i, shape in enumerate(shapes)}
    write(kind, path, arrays)
    tracemalloc.start()
    found = files.read_tensors(path)
    opened = tracemalloc.get_traced_memory()[1]
    quarter = {
        name: a[(slice(512), WHOLE) if a.shape[0] == 2048 else (WHOLE, slice(512))]
        for name, a in found.items()
    }
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened < size / 4, "nothing of the numbers is read before it is asked for"
    assert peak < 8 * size / 4 + size
    for name, array in quarter.items():
        np.testing.assert_array_equal(array, arrays[name][: array.shape[0], : array.shape[1]])


@pytest.mark.parametrize("strategy", ["dp", "fsdp", "fsdp_tp"])
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "bool"])
def test_every_dtype_lands_in_its_place(name, strategy, tmp_path):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    arrays = {
        "wide": (np.arange(64 * 128) % 16).reshape(64, 128).astype(dtype),
        "one": np.array(1, dtype),
        "none": np.zeros((0, 3), dtype),
    }
    safetensors_file.write(tmp_path / "x", arrays)
    layout = make_layout(STRATEGIES[strategy])
    for key, found in files.read_tensors(tmp_path / "x").items():
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, arrays[key])
        sharding = layout.param_sharding(found.shape, None)
        placed = lazy.place(found, jax.ShapeDtypeStruct(found.shape, jnp.bfloat16, sharding=sharding))
        assert placed.sharding == sharding and placed.dtype == jnp.bfloat16
        np.testing.assert_array_equal(placed, arrays[key].astype(jnp.bfloat16))


def test_the_library_reads_what_is_written_and_writes_the_same(tmp_path):
    from safetensors.numpy import load_file, save_file

    random = np.random.default_rng(0)
    arrays = {
        "b.x": random.random((3, 5)),
        "a": np.arange(5, dtype=np.int8),
        "b": random.random(4, np.float32),
    }
    safetensors_file.write(tmp_path / "ours", {k: lazy.LazyArray.of(a) for k, a in arrays.items()})
    save_file(arrays, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    for name, array in load_file(tmp_path / "ours").items():
        np.testing.assert_array_equal(array, arrays[name])
    # What it holds by columns in memory is written by rows.
    safetensors_file.write(tmp_path / "ours", {"x": lazy.LazyArray.of(arrays["b.x"]).T})
    np.testing.assert_array_equal(load_file(tmp_path / "ours")["x"], arrays["b.x"].T)


def test_tensors_that_share_a_storage_are_read_from_it(tmp_path):
    torch = pytest.importorskip("torch", reason="writes the file")
    base = torch.arange(600.0).reshape(20, 30)
    views = {"base": base, "rows": base[3:7], "turned": base.T, "gaps": base[:, ::7], "corner": base[2:, 5:9]}
    torch.save(views, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert sum("/data/" in name for name in archive.namelist()) == 1
    for name, found in files.read_tensors(tmp_path / "x.pth").items():
        expected = views[name].numpy()
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found[slice(1, 3), slice(2, 4)], expected[1:3, 2:4])


# Damage that no header tells of.


def damaged(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["npz", "packed.npz", "pth"])
def test_damaged_numbers_in_a_zip_are_found_as_they_are_read(kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    write(kind, path, {"w": np.random.default_rng(0).random(5000)})
    damaged(path, 2 * path.stat().st_size // 3)
    found = files.read_tensors(path)["w"]
    with pytest.raises(UserError, match=r"x\..* cannot be read as weights: "):
        np.asarray(found)


@pytest.mark.parametrize("kind", ["safetensors", "old.pth", "index"])
def test_files_that_shrink_after_they_were_opened(kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    write(kind, path, {"w": np.arange(500.0)})
    found = files.read_tensors(path)["w"]
    data = path.with_suffix(".data-00000-of-00001") if kind == "index" else path
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read as weights: it ends inside an array"):
        np.asarray(found)


def test_a_header_that_promises_more_than_the_entry_holds(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("w.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (10**14,)}
        )
        file.write(bytes(100))
    with pytest.raises(UserError, match="w.npy ends inside the array"):
        files.read_tensors(path)


# What was imported.


def imported(workload, tensors, folder):
    state, changes = workload.import_weights(tensors)
    files.save(folder, files.Imported(state, "toy", changes, {"file": "x"}))
    return state


@pytest.mark.parametrize("cls", [SmallDLRM, SmallDCNv2])
def test_tables_and_numbered_layers_come_back(cls, tmp_path):
    pytest.importorskip("torch", reason="makes the weights")
    from tests.weights.test_dlrm_weights import WORKLOADS, published

    (interaction,) = (name for name, one in WORKLOADS.items() if one is cls)
    workload = toys.make(cls)
    state = imported(workload, published(interaction)[1], tmp_path)
    layout = make_layout(STRATEGIES["row_wise"])
    loaded = from_weights(tmp_path, "toy").load(workload, layout)
    struct = workload.served_struct(layout)
    assert jax.tree.map(lambda a: a.sharding, loaded) == jax.tree.map(lambda a: a.sharding, struct)
    jax.tree.map(np.testing.assert_array_equal, loaded, state)


def test_a_single_number_comes_back(tmp_path):
    workload = toys.make(Doubler)
    np.savez(tmp_path / "x.npz", factor=2.0)
    imported(workload, files.read_tensors(tmp_path / "x.npz"), tmp_path / "ours")
    loaded = from_weights(tmp_path / "ours", "toy").load(workload, make_layout(STRATEGIES["dp"]))
    assert loaded["params"]["factor"] == 2


def test_import_holds_one_array_at_a_time(tmp_path):
    random, size = np.random.default_rng(0), 4 * 2**20
    safetensors_file.write(
        tmp_path / "x", {f"w{i}": random.random((1024, 1024), np.float32) for i in range(8)}
    )
    tracemalloc.start()
    found = {name: array.T for name, array in files.read_tensors(tmp_path / "x").items()}
    files.save(tmp_path / "ours", files.Imported({"params": found}, "toy", {}, {}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size + 2 * lazy._BLOCK < 8 * size
    back = files.load(tmp_path / "ours").state["params"]
    np.testing.assert_array_equal(back["w3"], np.asarray(found["w3"]))


def test_each_of_four_processes_holds_its_quarter_and_one_array():
    side = 2048  # 128 MiB in all
    allowance = 32 * 2**20
    peaks = weights_memory.measured("safetensors", side)
    assert len(peaks) == 4 and max(peaks) <= weights_memory.bound(side, allowance) < 128 * 2**20, peaks


def test_the_record_keeps_within_the_bound():
    record = json.loads(Path(weights_memory.__file__).with_suffix(".json").read_text())
    bytes_ = record["bytes"]
    assert bytes_["total"] == 2**31
    assert bytes_["bound"] == bytes_["total"] // 4 + bytes_["largest"] + 2**28
    assert set(record["peaks"]) == set(weights_memory.KINDS)
    assert all(peak <= bytes_["bound"] for peaks in record["peaks"].values() for peak in peaks)
