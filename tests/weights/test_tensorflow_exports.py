"""ResNet-50 and MobileNet as TensorFlow leaves them: frozen graphs, and their ONNX, whose names tell nothing.

The files are made here with the structure of MLPerf Inference's (resnet50_v1.onnx, mobilenet_v1_1.0_224.onnx): norms
folded into convolutions but for some, nodes renamed, 1,001 classes, a fixed padding with a max-pool that has
TensorFlow's own.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks.fuzzed_readers import field
from mlperf_jax.errors import UserError
from mlperf_jax.precision import POLICIES
from mlperf_jax.weights import files, mobilenet, resnet
from models.mobilenet import MobileNet, MobileNetConfig
from models.resnet import ResNet, ResNetConfig

torch = pytest.importorskip("torch", reason="PyTorch is the judge")
from torch.nn import functional as F  # noqa: E402  it needs torch

from benchmarks.peers import mobilenet as judge_of_mobilenet  # noqa: E402
from tests.weights.onnx_graph import Graph  # noqa: E402
from tests.weights.torchvision_resnet import random_resnet  # noqa: E402

BLOCKS, WIDTH, CLASSES, SIZE = (2, 1), 4, 7, 48
OURS = ResNetConfig(stages=BLOCKS, width=WIDTH, num_classes=CLASSES, image_size=SIZE, padding="fixed")
SMALL = MobileNetConfig(stem=8, blocks=((16, 1), (24, 2), (24, 1)), num_classes=7, image_size=37)


def with_the_class_that_is_none(array):
    """[1 + O, ...] of [O, ...]"""
    array = array.detach().numpy()
    return np.concatenate([np.full_like(array[:1], 9), array])


def resnet_graph(model, path, is_changed=False, scaled=False):
    """As the converter wrote resnet50_v1.onnx: the first norm stayed, shortcuts come now before and now after."""
    graph = Graph()
    if scaled:
        graph.node("Div", np.float32(255), name="resnet_model/div")
    graph.node("Pad", name="resnet_model/Pad")
    graph.node("Conv", model.conv1.weight.detach().numpy(), name="resnet_model/conv2d/Conv2D")
    graph.norm(model.bn1, "resnet_model/batch_normalization/FusedBatchNorm")
    graph.node("Relu", name="resnet_model/Relu")
    x = graph.node("MaxPool", name="resnet_model/max_pooling2d/MaxPool")
    for stage in range(model.stages):
        for block in getattr(model, f"layer{stage + 1}"):
            shortcut = x

            def project(block=block, x=x):
                return graph.folded(*block.downsample, inputs=[x])

            if block.downsample is not None and stage == 0:
                shortcut = project()
            graph.folded(block.conv1, block.bn1, inputs=[x])
            graph.node("Relu")
            graph.folded(block.conv2, block.bn2)
            graph.node("Relu")
            y = graph.folded(block.conv3, block.bn3)
            if block.downsample is not None and stage > 0:
                shortcut = project()
            graph.node("Add", inputs=[y, shortcut])
            x = graph.node("Relu")
    graph.node("ReduceMean", name="resnet_model/Mean")
    if is_changed:
        graph.node("Mul", np.float32([2]), name="resnet_model/mul")
    graph.node("Squeeze", name="resnet_model/Squeeze")
    weights, biases = (with_the_class_that_is_none(a) for a in (model.fc.weight, model.fc.bias))
    graph.node("MatMul", weights.T, name="resnet_model/dense/MatMul")
    graph.node("Add", biases, name="resnet_model/dense/BiasAdd")
    logits = graph.node("Identity", name="resnet_model/final_dense")
    graph.node("ArgMax", name="ArgMax")
    graph.node("Softmax", name="softmax_tensor", inputs=[logits])
    graph.write(path)


def resnet_variables(model):
    """The variables of TensorFlow's official model, counted as it builds them: of a block the shortcut's first."""
    layers = [(model.conv1, model.bn1)]
    for stage in range(model.stages):
        for block in getattr(model, f"layer{stage + 1}"):
            layers += [tuple(block.downsample)] if block.downsample is not None else []
            layers += [(block.conv1, block.bn1), (block.conv2, block.bn2), (block.conv3, block.bn3)]
    named = {}
    for i, (conv, norm) in enumerate(layers):
        count = f"_{i}" if i else ""
        named[f"resnet_model/conv2d{count}/kernel"] = conv.weight.detach().numpy().transpose(2, 3, 1, 0)
        parts = ("gamma", norm.weight), ("beta", norm.bias)
        for part, array in (
            *parts,
            ("moving_mean", norm.running_mean),
            ("moving_variance", norm.running_var),
        ):
            named[f"resnet_model/batch_normalization{count}/{part}"] = array.detach().numpy()
    named["resnet_model/dense/kernel"] = with_the_class_that_is_none(model.fc.weight).T
    named["resnet_model/dense/bias"] = with_the_class_that_is_none(model.fc.bias)
    return named


def frozen(tensors, path):
    """A frozen graph: constants by the variables' names, an identity after each, and what is no weight."""
    kinds = {"float32": 1, "float64": 2}
    graph = b""

    def const(name, tensor):
        value = field(5, field(1, b"value") + field(2, field(8, tensor)))
        kind = field(5, field(1, b"dtype") + field(2, field(6, 1)))
        return field(1, field(1, name.encode()) + field(2, b"Const") + kind + value)

    for name, array in tensors.items():
        shape = field(2, b"".join(field(2, field(1, n)) for n in array.shape))
        numbers = field(4, np.ascontiguousarray(array).tobytes())
        graph += const(name, field(1, kinds[str(array.dtype)]) + shape + numbers)
        graph += field(1, field(1, f"{name}/read".encode()) + field(2, b"Identity") + field(3, name.encode()))
    same = field(2, field(2, field(1, 3)) + field(2, field(1, 2)))
    graph += const("all_alike", field(1, 1) + same + field(5, np.float32([0.5]).tobytes()))
    graph += const("axes", field(1, 3) + field(2, field(2, field(1, 2))) + field(7, b"\1\2"))
    graph += const("words", field(1, 7) + field(8, b"a word"))
    path.write_bytes(graph + field(4, field(1, 27)))


def answers(model, config, state, images):
    graph, *_ = nnx.split(nnx.eval_shape(lambda: model(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0))))
    state = jax.tree.map(np.asarray, state)

    @jax.jit
    def run(state, images):
        return nnx.merge(graph, state["params"], state["model_state"])(images, train=False)

    return np.asarray(run(state, images))


class PoolAtTheEnd(torch.nn.Module):
    """TensorFlow's SAME for 3x3/2 on an even size: one row and one column at the end."""

    def forward(self, x):
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-np.inf), 3, 2)


@pytest.fixture(scope="module")
def resnet_case():
    """(PyTorch's model, images, its logits)"""
    model = random_resnet(BLOCKS, WIDTH, CLASSES)
    model.maxpool = PoolAtTheEnd()
    images = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        return model, images, model(torch.as_tensor(images.transpose(0, 3, 1, 2))).numpy()


@pytest.mark.parametrize("kind", ["onnx", "pb"])
def test_resnet_answers_as_pytorch_does(kind, resnet_case, tmp_path):
    model, images, expected = resnet_case
    path = tmp_path / f"resnet50_v1.{kind}"
    resnet_graph(model, path) if kind == "onnx" else frozen(resnet_variables(model), path)
    state, config = resnet.published(files.read_tensors(path), OURS)
    assert config == {"model.padding": "fixed", "data.mean": (123.68, 116.78, 103.94), "data.std": (1.0,) * 3}
    actual = answers(ResNet, OURS, state, images)
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["onnx", "onnx with apart biases", "pb"])
def test_mobilenet_answers_as_pytorch_does(kind, tmp_path):
    model = judge_of_mobilenet.MobileNet(SMALL.stem, SMALL.blocks, SMALL.num_classes)
    judge_of_mobilenet.randomise(model, 3).eval()
    path = tmp_path / "mobilenet_v1_1.0_224"
    if kind == "pb":
        frozen(model.tensorflow_names(), path)
    else:
        mobilenet_graph(model, path, biases_apart=kind != "onnx")
    images = np.random.default_rng(1).normal(size=(2, 37, 37, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.as_tensor(images.transpose(0, 3, 1, 2))).numpy()
    actual = answers(MobileNet, SMALL, mobilenet.published(files.read_tensors(path), SMALL), images)
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def mobilenet_graph(model, path, biases_apart):
    """As the converter wrote it: norms of depthwise convolutions stayed, the others are folded."""
    graph = Graph()
    graph.node("Transpose")
    for _, conv, norm, _ in model.layers:
        if conv.groups > 1:
            graph.node("Conv", conv.weight.detach().numpy())
            graph.norm(norm, "")
        else:
            graph.folded(conv, norm)
        graph.node("Clip")
    graph.node("GlobalAveragePool")
    weights, biases = (with_the_class_that_is_none(a) for a in (model.head.weight, model.head.bias))
    weights = weights[:, :, None, None]
    if biases_apart:
        graph.node("Conv", weights)
        graph.node("Identity")
        graph.node("Add", biases[None, :, None, None])
    else:
        graph.node("Conv", weights, biases)
    graph.node("Squeeze")
    graph.node("Reshape", np.array([-1, 8]))
    graph.node("Softmax")
    graph.write(path)


def test_other_graphs_are_refused(resnet_case, tmp_path):
    model, *_ = resnet_case
    path = tmp_path / "x.onnx"
    resnet_graph(model, path, is_changed=True)
    with pytest.raises(UserError, match=r"its Mul 'resnet_model/mul' is no part of a layer"):
        files.read_tensors(path)
    resnet_graph(model, path, scaled=True)
    with pytest.raises(UserError, match="scales its images"):
        resnet.published(files.read_tensors(path), OURS)
    resnet_graph(model, path)
    tensors = files.read_tensors(path)
    deeper = ResNetConfig(stages=(2, 2), width=WIDTH, num_classes=CLASSES, padding="fixed")
    with pytest.raises(UserError, match="has 13 layers where this model has 16"):
        resnet.published(tensors, deeper)
    with pytest.raises(UserError, match="graph.0.weight has shape"):
        mobilenet.published(tensors, MobileNetConfig(blocks=((16, 1),) * 6, num_classes=7))
    with pytest.raises(UserError, match="more than 8 layers"):
        mobilenet.published(tensors, SMALL)
    variables = resnet_variables(model)
    del variables["resnet_model/batch_normalization_3/beta"]
    with pytest.raises(UserError, match=r"no layer1\.0\.bn2\.bias"):
        resnet.published(variables, OURS)


def test_constants_that_stand_for_many(tmp_path):
    frozen({"a": np.arange(6, dtype=np.float64).reshape(2, 3)}, tmp_path / "x.pb")
    found = files.read_tensors(tmp_path / "x.pb")
    assert found.keys() == {"a", "all_alike"}
    assert np.asarray(found["all_alike"]).tolist() == [[0.5, 0.5]] * 3
    assert np.asarray(found["a"]).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_few_numbers_for_a_large_shape(tmp_path):
    """A constant of one number may not unfold to more than a file of its size may."""
    shape = field(2, field(2, field(1, 2**20)) + field(2, field(1, 2**10)))
    tensor = field(1, 1) + shape + field(5, np.float32([1]).tobytes())
    value = field(5, field(1, b"value") + field(2, field(8, tensor)))
    (tmp_path / "x.pb").write_bytes(field(1, field(1, b"w") + field(2, b"Const") + value))
    with pytest.raises(UserError, match="unfold to more"):
        files.read_tensors(tmp_path / "x.pb")
    (tmp_path / "x.pb").write_bytes(field(1, field(1, b"w") + field(2, b"Const") + value[:-3]))
    with pytest.raises(UserError, match="cannot be read as weights"):
        files.read_tensors(tmp_path / "x.pb")
