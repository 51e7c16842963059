"""TensorFlow checkpoints: a writer by the formats' descriptions, MiniGo's names, and damaged files."""

import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.errors import UserError
from mlperf_jax.precision import POLICIES
from mlperf_jax.weights import files, minigo, tensorflow_file
from mlperf_jax.weights.protobuf import Refused
from models.minigo import DualNetwork, DualNetworkConfig

KINDS = {"float32": 1, "float64": 2, "int64": 9}
CONFIG = DualNetworkConfig(size=5, conv_width=4, trunk_layers=2, fc_width=3)


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries, restart_every=3):
    """A LevelDB block: keys share the beginning of the one before them, except at restarts."""
    out, restarts, last = b"", [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % restart_every:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        else:
            restarts.append(len(out))
        fresh = key[shared:]
        out += varint(shared) + varint(len(fresh)) + varint(len(value)) + fresh + value
        last = key
    return out + struct.pack(f"<{len(restarts)}I", *restarts) + struct.pack("<I", len(restarts))


def write(path, tensors, per_block=4):
    """NAME.index and NAME.data-00000-of-00001."""
    entries, data = [(b"", field(1, 1) + field(3, field(1, 1)))], b""
    for name, array in sorted(tensors.items()):
        shape = b"".join(field(2, field(1, n)) for n in array.shape)
        entry = field(1, KINDS[str(array.dtype)]) + field(2, shape) + field(5, array.nbytes)
        if data:
            entry += field(4, len(data))
        entries.append((name.encode(), entry + varint(6 << 3 | 5) + b"\0\0\0\0"))
        data += array.tobytes()
    file, handles = b"", []
    for start in range(0, len(entries), per_block):
        part = entries[start : start + per_block]
        packed = block(part)
        handles.append((part[-1][0], varint(len(file)) + varint(len(packed))))
        file += packed + b"\0" * 5
    for packed in (block([]), block(handles, 1)):
        footer = varint(len(file)) + varint(len(packed))
        handles.append(footer)
        file += packed + b"\0" * 5
    footer = (handles[-2] + handles[-1]).ljust(40, b"\0") + tensorflow_file.MAGIC
    path.write_bytes(file + footer)
    path.with_suffix(".data-00000-of-00001").write_bytes(data)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text("ab/_1", min_size=1, max_size=9), st.lists(st.integers(1, 3), max_size=3), max_size=12
    )
)
def test_arrays_are_read_back(tmp_path_factory, shapes):
    path = tmp_path_factory.mktemp("checkpoint") / "model.ckpt-12.index"
    random = np.random.default_rng(0)
    kinds = list(KINDS)
    tensors = {
        name: random.integers(-99, 99, shape).astype(kinds[i % 3])
        for i, (name, shape) in enumerate(shapes.items())
    }
    write(path, tensors)
    found = files.read_tensors(path)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def variables(config):
    """Random arrays of a network's shapes."""
    model = nnx.eval_shape(lambda: DualNetwork(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    _, params, rest = nnx.split(model, nnx.Param, ...)
    shapes = {"params": nnx.to_pure_dict(params), "model_state": nnx.to_pure_dict(rest)}
    random = np.random.default_rng(4)
    return jax.tree.map(lambda x: random.random(x.shape, np.float32), shapes)


def tensorflow_names(state, layers):
    """Variables as MiniGo's graph names them: by kind of layer, in the order in which they are built."""
    params, stats = state["params"], state["model_state"]
    convs = [("conv", "norm")] + [(f"block{i}", j) for i in range(layers) for j in (1, 2)]
    convs += [("policy_conv", "policy_norm"), ("value_conv", "value_norm")]
    named = {}
    for i, (conv, norm) in enumerate(convs):
        suffix = f"_{i}" if i else ""
        if isinstance(norm, int):
            kernel = params["blocks"][conv][f"conv{norm}"]["kernel"]
            affine, running = params["blocks"][conv][f"norm{norm}"], stats["blocks"][conv][f"norm{norm}"]
        else:
            kernel, affine, running = params[conv]["kernel"], params.get(norm, {}), stats[norm]
        named[f"conv2d{suffix}/kernel"] = kernel
        names = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
        for name, value in [*affine.items(), *running.items()]:
            named[f"batch_normalization{suffix}/{names[name]}"] = value
    for i, dense in enumerate(("policy_dense", "value_hidden", "value_dense")):
        for name, value in params[dense].items():
            named[f"dense{f'_{i}' if i else ''}/{name}"] = value
    return named


def test_minigos_checkpoint(tmp_path):
    expected = variables(CONFIG)
    named = tensorflow_names(expected, CONFIG.trunk_layers) | {"global_step": np.int64(7)[None]}
    write(tmp_path / "target.index", named)
    found = minigo.from_tensorflow(files.read_tensors(tmp_path / "target.index"), CONFIG)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(UserError, match="has shape"):
        minigo.from_tensorflow(named, DualNetworkConfig(size=6, conv_width=4, trunk_layers=2, fc_width=3))
    del named["dense/bias"]
    with pytest.raises(UserError, match="have no dense/bias"):
        minigo.from_tensorflow(named, CONFIG)


def test_a_checkpoint_with_nan_is_refused(tmp_path):
    named = tensorflow_names(variables(CONFIG), CONFIG.trunk_layers)
    named["dense_1/bias"][0] = np.nan
    write(tmp_path / "target.index", named)
    state = minigo.from_tensorflow(files.read_tensors(tmp_path / "target.index"), CONFIG)
    with pytest.raises(UserError, match="dense_1/bias has numbers that are NaN or infinite"):
        jax.tree.map(np.asarray, state)


def test_on_19x19_the_policy_reads_channels_first():
    config = DualNetworkConfig(size=19, conv_width=1, trunk_layers=0, fc_width=1)
    named = tensorflow_names(variables(config), 0)
    kernel = named["dense/kernel"]
    found = minigo.from_tensorflow(named, config)["params"]["policy_dense"]["kernel"]
    for point, channel in ((0, 1), (5, 0), (360, 1)):
        np.testing.assert_array_equal(found[2 * point + channel], kernel[361 * channel + point])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_refused(tmp_path_factory, data):
    path = Path(tmp_path_factory.mktemp("damaged")) / "m.index"
    write(path, {f"v{i}": np.arange(i, dtype=np.float32) for i in range(6)})
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 9))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        found = tensorflow_file.read(path)
    except (Refused, OSError):
        return
    assert all(array.nbytes < 1000 for array in found.values())


def test_missing_and_short_data(tmp_path):
    path = tmp_path / "m.index"
    write(path, {"v": np.arange(5.0)})
    data = path.with_suffix(".data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(UserError, match="ends inside v"):
        files.read_tensors(path)
    data.unlink()
    with pytest.raises(UserError, match=r"m.index cannot be read as weights"):
        files.read_tensors(path)
