"""TFLite's reader, and SSD-MobileNet v2 out of it against a run of the same graph, operator by operator, in NumPy."""

import dataclasses
import random

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks.tflite_graph import Graph, Interpreter, flatbuffer
from mlperf_jax.errors import UserError
from mlperf_jax.precision import resolve_policy
from mlperf_jax.weights import files, tflite_file
from mlperf_jax.weights.ssd_mobilenet_v2 import from_graph
from models.ssd_mobilenet_v2 import SSDMobileNetV2, SSDMobileNetV2Config
from tests.weights import tflite_detector

SMALL = tflite_detector.SMALL


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tflite_detector.write(tmp_path_factory.mktemp("tflite") / "x.tflite")


def test_the_graph_answers_as_its_operators_do(path):
    state = from_graph(files.read_tensors(path), SMALL)
    policy = resolve_policy("float32", "cpu")
    graph, params = nnx.split(nnx.eval_shape(lambda: SSDMobileNetV2(SMALL, policy=policy, rngs=nnx.Rngs(0))))
    params = jax.tree.map(lambda x: x.shape, nnx.to_pure_dict(params), is_leaf=lambda x: hasattr(x, "dtype"))
    given = jax.tree.map(np.asarray, state["params"], is_leaf=lambda x: hasattr(x, "dtype"))
    assert jax.tree.map(np.shape, given) == params
    images = np.random.default_rng(1).uniform(-1, 1, (3, 48, 48, 3)).astype(np.float32)
    codes, logits = jax.jit(lambda params, x: nnx.merge(graph, params)(x))(given, images)
    assert codes.shape == (3, 3 * 12**2 + 6 * 6**2 + 6 * 3**2, 4) and logits.shape[-1] == 5
    judge = Interpreter(path)
    for image, code, logit in zip(images, np.asarray(codes), np.asarray(logits), strict=True):
        expected = [x[0] for x in judge.run(image[None])]
        assert np.abs(expected[1]).max() > 0.5  # a graph that says something
        for ours, theirs in ((code[:, [1, 0, 3, 2]], expected[0]), (logit, expected[1])):
            assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_sizes_are_those_of_the_published_graph():
    config = SSDMobileNetV2Config()
    assert config.feature_sizes == (19, 10, 5, 3, 2, 1)
    assert config.map_channels == (576, 1280, 512, 256, 256, 128)
    anchors = sum(n * n * a for n, a in zip(config.feature_sizes, config.anchors, strict=True))
    assert anchors == 1917
    policy = resolve_policy("float32", "cpu")
    made = nnx.eval_shape(lambda: SSDMobileNetV2(config, policy=policy, rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(made))) == 4_951_996


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"last": 48}, "has shape|have no"),
        ({"num_classes": 6}, "has shape|have no"),
        ({"taken_in": 5}, "has shape|have no"),
        ({"blocks": SMALL.blocks[:-1]}, "more than"),
        ({"extra_inner": (), "extra_outer": (), "anchors": (3, 6)}, "more than"),
        ({"extra_inner": (8, 8), "extra_outer": (24, 24), "anchors": (3, 6, 6, 6)}, "has shape|have no"),
    ],
)
def test_another_model_is_refused(path, change, said):
    with pytest.raises(UserError, match=said):
        from_graph(files.read_tensors(path), dataclasses.replace(SMALL, **change))


def test_weights_that_are_no_graph_are_refused():
    with pytest.raises(UserError, match="not the layers of a graph"):
        from_graph({"stem.weight": np.ones((8, 3, 3, 3), np.float32)}, SMALL)


def test_sizes_that_make_no_model_are_refused():
    for change in ({"taken_in": 1}, {"taken_in": 6}, {"anchors": (3, 6)}):
        with pytest.raises(ValueError, match="anchors|expanded"):
            dataclasses.replace(SMALL, **change)


# Files that are not as they should be.


def one_layer(path, change=lambda graph: None, outputs=None):
    graph = Graph(1, 4, 4, 2)
    weight = np.arange(6.0).reshape(3, 1, 1, 2)
    out = graph.conv(graph.input, weight, np.arange(3.0))
    change(graph)
    graph.write(path, [out] if outputs is None else outputs)
    return path


def test_a_layer_is_read_as_onnx_has_it(tmp_path):
    found = files.read_tensors(one_layer(tmp_path / "x.bin"))
    np.testing.assert_array_equal(found["graph.0.weight"], np.arange(6.0).reshape(3, 2, 1, 1))
    np.testing.assert_array_equal(found["graph.0.bias"], np.arange(3.0))
    assert {str(array.dtype) for array in found.values()} == {"float16"}


def test_an_archive_behind_the_graph_does_not_hide_it(tmp_path):
    import zipfile

    path = one_layer(tmp_path / "x.tflite")
    with zipfile.ZipFile(path, "a") as archive:  # as metadata are packed with a model
        archive.writestr("labels.txt", "a\nb")
    assert set(files.read_tensors(path)) == {"graph.0.weight", "graph.0.bias"}


def changed(part, index, field, value):
    def change(graph):
        getattr(graph, part)[index][field] = value

    return change


# The tensors are the input, then of the layer: weights of 16 bits and of 32, bias of 16 and of 32, and what it gives.
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            changed("_tensors", 1, tflite_file.KIND, ("b", 9)),
            "plain numbers; take the file that is not quantised",
        ),
        (changed("_tensors", 1, tflite_file.SPARSITY, {}), "sparse"),
        (changed("_tensors", 1, tflite_file.BUFFER, ("I", 9)), "a buffer that there is not"),
        (
            changed("_tensors", 1, tflite_file.SHAPE, np.array([3, 1, 1, 9], "<i4")),
            "bytes where its shape is",
        ),
        (changed("_tensors", 1, tflite_file.SHAPE, np.array([-3, 1, 1, -2], "<i4")), "impossible shape"),
        (
            changed("_tensors", 1, tflite_file.SHAPE, np.array([2**31 - 1] * 4, "<i4")),
            "larger than any memory",
        ),
        (changed("_tensors", 1, tflite_file.SHAPE, np.ones(99, "<i4")), "impossible shape"),
        (changed("_tensors", 1, tflite_file.SHAPE, np.array([6], "<i4")), "number of dimensions"),
        (changed("_buffers", 1, tflite_file.FAR_AWAY, ("Q", 1000)), "behind its graph"),
        (changed("_operators", 2, tflite_file.CODE, ("I", 9)), "a kind that there is not"),
        (changed("_operators", 2, tflite_file.READS, np.array([0], "<i4")), "no weights that are plain"),
    ],
)
def test_what_cannot_be_weights_is_refused_in_a_sentence(change, said, tmp_path):
    with pytest.raises(UserError, match=said):
        files.read_tensors(one_layer(tmp_path / "x.tflite", change))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({}, "no graph"),
        ({tflite_file.SUBGRAPHS: []}, "no graph"),
        ({tflite_file.SUBGRAPHS: [{}, {}]}, "more than 1"),
    ],
)
def test_a_file_with_another_number_of_graphs_is_refused(model, said, tmp_path):
    (tmp_path / "x").write_bytes(flatbuffer(model))
    with pytest.raises(UserError, match=said):
        files.read_tensors(tmp_path / "x")


def test_one_tensor_read_by_many_operators_costs_no_more_than_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("mlperf_jax.weights.budget.STEPS", 10)
    with pytest.raises(UserError, match="read more than 10 tensors"):
        files.read_tensors(
            one_layer(
                tmp_path / "x",
                changed("_operators", 2, tflite_file.READS, np.arange(3, dtype="<i4").repeat(9)),
            )
        )


def test_any_damage_ends_in_arrays_or_a_sentence(path, tmp_path):
    whole, draws = path.read_bytes(), random.Random(5)
    for _ in range(300):
        data = bytearray(whole[: draws.choice([len(whole), draws.randrange(8, len(whole))])])
        for _ in range(draws.randrange(1, 6)):
            # Mostly near the start, where tables and lists are.
            data[draws.randrange(8, min(len(data), draws.choice([9, 3000, len(data)]) + 1))] = (
                draws.randrange(256)
            )
        (tmp_path / "x").write_bytes(data)
        try:
            for array in files.read_tensors(tmp_path / "x").values():
                np.asarray(array)
        except UserError as error:
            assert "\n" not in str(error)
