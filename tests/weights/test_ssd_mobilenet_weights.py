"""SSD-MobileNet under its published names: TensorFlow's variables and graph, MLPerf's PyTorch port, a classifier's trunk."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.precision import POLICIES
from mlperf_jax.weights import files
from mlperf_jax.weights.ssd_mobilenet import backbone, from_published
from models.ssd_mobilenet import SSDMobileNet, SSDMobileNetConfig
from tests.weights.onnx_graph import Graph

CONFIG = SSDMobileNetConfig(
    image_size=35,
    num_classes=5,
    stem=8,
    blocks=((8, 1), (10, 2), (12, 2)),
    taken_after=(2, 3),
    extra_inner=(5, 4),
    extra_outer=(9, 7),
    anchors=(3, 6, 6, 6),
)
SCOPE = "FeatureExtractor/MobilenetV1"


def convolutions():
    """(TensorFlow's name, the port's place, size, features in and out) of every convolution with a norm."""
    yield "Conv2d_0", "backbone.0.0", 3, 3, CONFIG.stem
    features = CONFIG.stem
    for i, (width, _) in enumerate(CONFIG.blocks, 1):
        yield f"Conv2d_{i}_depthwise", f"backbone.{i}.depthwise", 3, features, 1
        yield f"Conv2d_{i}_pointwise", f"backbone.{i}.pointwise", 1, features, width
        features = width
    for i, (inner, outer) in enumerate(zip(CONFIG.extra_inner, CONFIG.extra_outer, strict=True)):
        yield f"Conv2d_3_pointwise_1_Conv2d_{i + 2}_1x1_{inner}", f"extras.{i}.0", 1, features, inner
        yield f"Conv2d_3_pointwise_2_Conv2d_{i + 2}_3x3_s2_{outer}", f"extras.{i}.2", 3, inner, outer
        features = outer


def drawn():
    """The arrays of a detector under both kinds of names; the norms say the same with and without statistics."""
    random = np.random.default_rng(0)
    tensorflow, port = {"global_step": np.zeros(())}, {}
    for name, place, size, inputs, outputs in convolutions():
        depthwise = name.endswith("depthwise")
        kernel = random.normal(size=(size, size, inputs, outputs)).astype(np.float32)
        features = inputs if depthwise else outputs
        gamma, beta, mean = random.normal(size=(3, features)).astype(np.float32)
        var = random.uniform(0.5, 2, features).astype(np.float32)
        kind = "depthwise_weights" if depthwise else "weights"
        tensorflow |= {f"{SCOPE}/{name}/{kind}": kernel}
        norm = {"gamma": gamma, "beta": beta, "moving_mean": mean, "moving_variance": var}
        tensorflow |= {f"{SCOPE}/{name}/BatchNorm/{key}": value for key, value in norm.items()}
        gain = gamma / np.sqrt(var + 1e-3)
        bias = beta - mean * gain
        rest = place if place.startswith("extras") else f"{place}/BatchNorm"
        port |= {f"{rest}.bias": bias}
        if depthwise:
            port |= {f"{rest}.scale": gain, f"{place}.weight": kernel.transpose(2, 3, 0, 1)}
        else:
            port |= {f"{place}.weight": (kernel * gain).transpose(3, 2, 0, 1)}
    for i, (features, anchors) in enumerate(zip(CONFIG.map_channels, CONFIG.anchors, strict=True)):
        for theirs, kind, values in (
            ("BoxEncodingPredictor", "regression", 4),
            ("ClassPredictor", "classification", CONFIG.num_classes),
        ):
            kernel = random.normal(size=(1, 1, features, values * anchors)).astype(np.float32)
            bias = random.normal(size=values * anchors).astype(np.float32)
            tensorflow |= {f"BoxPredictor_{i}/{theirs}/weights": kernel}
            tensorflow |= {f"BoxPredictor_{i}/{theirs}/biases": bias}
            port |= {f"predictors.{i}.{kind}.weight": kernel.transpose(3, 2, 0, 1)}
            port |= {f"predictors.{i}.{kind}.bias": bias}
    return tensorflow, port


def predictions(state):
    model = nnx.eval_shape(lambda: SSDMobileNet(CONFIG, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    for part, ours in (("params", params), ("model_state", rest)):
        shapes = jax.tree.map(lambda x: x.shape, nnx.to_pure_dict(ours))
        assert shapes == jax.tree.map(lambda x: tuple(x.shape), state[part])
    state = jax.tree.map(np.asarray, state)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 35, 35, 3)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda s, x: nnx.merge(graph, s["params"], s["model_state"])(x, train=False))(
            state, images
        )


def test_both_forms_predict_the_same():
    tensorflow, port = drawn()
    expected = predictions(from_published(tensorflow, CONFIG))
    for prefix in ("", "module."):
        found = predictions(from_published({f"{prefix}{n}": a for n, a in port.items()}, CONFIG))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


def detector_graph(port, path, factor=2 / 255):
    """The port's arrays in a graph like TensorFlow's: images scaled, norms of depthwise convolutions halved, boxes decoded."""
    graph = Graph()
    graph.node("Cast")
    graph.node("Mul", np.float32(factor))
    graph.node("Sub", np.float32(1))
    graph.node("Transpose")
    taken = []

    def layer(place, bias):
        weight = port[f"{place}.weight"]
        if place.endswith("depthwise"):
            graph.node("Conv", weight)
            graph.node("Mul", port[f"{place}/BatchNorm.scale"].reshape(1, -1, 1, 1))
            graph.node("Add", bias.reshape(1, -1, 1, 1))
        else:
            graph.node("Conv", weight, bias)
        return graph.node("Clip")

    for name, place, *_ in convolutions():
        rest = place if place.startswith("extras") else f"{place}/BatchNorm"
        last = layer(place, port[f"{rest}.bias"])
        if name in ("Conv2d_2_pointwise", "Conv2d_3_pointwise") or "_3x3_s2_" in name:
            taken.append(last)
    for i, last in enumerate(taken):
        for kind in ("regression", "classification")[:: 1 if i % 2 else -1]:  # in whichever order
            graph.node("Conv", port[f"predictors.{i}.{kind}.weight"], inputs=[last])
            graph.node("Transpose")
            graph.node("Add", port[f"predictors.{i}.{kind}.bias"])
            graph.node("Reshape", np.array([1, -1, 4]))
    graph.node("Mul", np.float32([0.1, 0.1, 0.2, 0.2]))  # of decoding
    graph.node("Sub", np.float32(0.5))
    graph.write(path)


def test_a_graph_predicts_the_same(tmp_path):
    tensorflow, port = drawn()
    expected = predictions(from_published(tensorflow, CONFIG))
    detector_graph(port, tmp_path / "x.onnx")
    found = predictions(from_published(files.read_tensors(tmp_path / "x.onnx"), CONFIG))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())
    detector_graph(port, tmp_path / "x.onnx", factor=1.0)
    with pytest.raises(UserError, match="takes images times 1 plus -1, where this model's are from -1 to 1"):
        from_published(files.read_tensors(tmp_path / "x.onnx"), CONFIG)
    shallow = dataclasses.replace(CONFIG, blocks=CONFIG.blocks[:2], taken_after=(1, 2))
    detector_graph(port, tmp_path / "x.onnx")
    with pytest.raises(UserError, match="more than|has shape"):
        from_published(files.read_tensors(tmp_path / "x.onnx"), shallow)


def test_a_box_is_predicted_across_before_down():
    """The published (y, x, height, width) of each anchor is ours (x, y, width, height)."""
    tensorflow, _ = drawn()
    head = from_published(tensorflow, CONFIG)["params"]["heads"]["map2"]["boxes"]
    theirs = tensorflow["BoxPredictor_1/BoxEncodingPredictor/biases"].reshape(-1, 4)
    np.testing.assert_array_equal(np.asarray(head["bias"]).reshape(-1, 4), theirs[:, [1, 0, 3, 2]])
    kernel = tensorflow["BoxPredictor_1/BoxEncodingPredictor/weights"].reshape(-1, 6, 4)
    found = np.asarray(head["kernel"]).reshape(-1, 6, 4)
    np.testing.assert_array_equal(found, kernel[..., [1, 0, 3, 2]])


def test_a_backbone_is_a_classifiers_trunk():
    tensorflow, _ = drawn()
    classifier = {name.removeprefix("FeatureExtractor/"): a for name, a in tensorflow.items()}
    found, whole = backbone(classifier, CONFIG), from_published(tensorflow, CONFIG)
    for part in ("params", "model_state"):
        a, b = found[part], whole[part]["backbone"]
        assert jax.tree.structure(a) == jax.tree.structure(b)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    with pytest.raises(UserError, match="no MobilenetV1/Conv2d_0/weights"):
        backbone(tensorflow, CONFIG)


@pytest.mark.parametrize(
    ("form", "change", "said"),
    [
        (0, {"BoxPredictor_0/ClassPredictor/biases": None}, "no BoxPredictor_0/ClassPredictor/biases"),
        (0, {f"{SCOPE}/Conv2d_1_pointwise/weights": (1, 1, 8, 9)}, "Conv2d_1_pointwise/weights has shape"),
        (1, {"extras.1.2.bias": None}, "no extras.1.2.bias"),
        (1, {"predictors.1.classification.weight": (5, 12, 1, 1)}, "classification.weight has shape"),
    ],
)
def test_weights_of_another_detector_are_refused(form, change, said):
    tensors = drawn()[form]
    for name, shape in change.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=said):
        from_published(tensors, CONFIG)
