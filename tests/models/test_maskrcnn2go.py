"""Mask R-CNN2Go: its sizes, and predictions and gradients against PyTorch; torchvision's MobileNet v2 as its trunk."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.precision import POLICIES
from mlperf_jax.weights import mobilenet_v2
from models.maskrcnn2go import MaskRCNN2Go, MaskRCNN2GoConfig, flops_per_image

SMALL = MaskRCNN2GoConfig(
    stem=4,
    stages=((1, 4, 1, 1), (2, 6, 2, 2), (3, 8, 1, 2)),
    channels=6,
    dense=10,
    box_window=3,
    mask_window=4,
    convs=1,
    num_keypoints=5,
)
HEIGHT, WIDTH, BOXES = 32, 48, 3


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_the_closed_model_has_mobilenet_v2s_parameters():
    config = MaskRCNN2GoConfig()
    model = nnx.eval_shape(lambda: MaskRCNN2Go(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    whole, last, classifier = 3_504_872, 320 * 1280 + 2 * 1280, 1280 * 1000 + 1000
    assert count(params["backbone"]) == whole - last - classifier == 1_811_712
    assert config.map_channels == (24, 32, 96, 320) and config.strides == (4, 8, 16, 32, 64)
    assert count(params) == CLOSED


CLOSED = 2_205_484


def test_flops_are_counted_by_hand():
    trunk = flops_per_image(MaskRCNN2GoConfig(), (224, 224), 0, 0, train=False)
    # MobileNet v2's 300.8 M multiply-adds without its last convolution (7 x 7 x 320 x 1280) and its classifier.
    mobile = 2 * (300_774_272 - 49 * 320 * 1280 - 1280 * 1000)
    pyramid = sum(
        cells * (n * 64 + 9 * 64 * 64)
        for cells, n in zip((3136, 784, 196, 49), (24, 32, 96, 320), strict=True)
    )
    heads = (3136 + 784 + 196 + 49 + 12) * (9 * 64 + 64 * 64 + 15 * 64)
    assert trunk == mobile + 2 * (pyramid + heads)
    more = flops_per_image(MaskRCNN2GoConfig(), (224, 224), 1, 0, train=False) - trunk
    assert more == 2 * (16 * (9 * 64 + 64 * 64) + 16 * 64 * 128 + 128 * 10)
    window = flops_per_image(MaskRCNN2GoConfig(), (224, 224), 0, 1, train=True) - 3 * trunk
    separable, enlarged = 4 * (9 * 64 + 64 * 64) * 196, 196 * 64 * 64 * 4
    assert window == 3 * 2 * (2 * (separable + enlarged) + 784 * 64 * 19)


torch = pytest.importorskip("torch", reason="PyTorch is the judge")

from benchmarks.peers import maskrcnn2go as theirs  # noqa: E402  it needs torch


@functools.cache
def drawn(dtype):
    """The graph, and parameters and batch statistics (NumPy) that are not those a model starts with."""
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        model = nnx.eval_shape(lambda: MaskRCNN2Go(SMALL, policy=POLICIES[dtype], rngs=nnx.Rngs(0)))
    graph, params, stats = nnx.split(model, nnx.Param, ...)

    def values(tree, low):
        return jax.tree.map(lambda x: random.uniform(low, 1, x.shape).astype(dtype), nnx.to_pure_dict(tree))

    params = jax.tree.map(
        lambda x: (x / np.sqrt(max(1, x.size / x.shape[-1]))).astype(dtype), values(params, -1)
    )
    return graph, params, values(stats, 0.5)


def named(tree):
    """With texts for keys, as PyTorch's side takes it."""
    return {str(k): named(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree)


def inputs(dtype):
    random = np.random.default_rng(1)
    windows = [(2, BOXES, n, n, SMALL.channels) for n in (SMALL.box_window, SMALL.mask_window)]
    return [random.normal(size=shape).astype(dtype) for shape in ((2, HEIGHT, WIDTH, 3), *windows)]


def predict(model, images, box_features, window_features, train):
    """Everything that the network says, in the order of `judged`."""
    levels, logits, codes = model(images, train=train)
    heads = [*model.boxes(box_features), model.masks(window_features), model.keypoints(window_features)]
    return [*levels, *logits, *codes, *heads]


def judged(judge, images, box_features, window_features):
    """The same by PyTorch, from and in channels last."""
    seen = [torch.from_numpy(x).movedim(-1, -3) for x in (images, box_features, window_features)]
    levels, logits, codes = judge(seen[0])
    boxes = [x.unflatten(0, (2, BOXES)) for x in judge.boxes(seen[1].flatten(0, 1))]
    maps = [head(seen[2].flatten(0, 1)).unflatten(0, (2, BOXES)) for head in (judge.masks, judge.keypoints)]
    return [*(x.movedim(1, -1) for x in levels), *logits, *codes, *boxes, *(x.movedim(2, -1) for x in maps)]


def test_predictions_are_pytorchs():
    graph, params, stats = drawn("float32")
    found = jax.jit(lambda *state: predict(nnx.merge(graph, *state), *inputs("float32"), train=False))(
        params, stats
    )
    judge = theirs.load(theirs.TorchMaskRCNN2Go(SMALL), named(params), named(stats)).eval()
    with torch.no_grad():
        expected = judged(judge, *inputs("float32"))
    assert len(found) == len(expected) == 2 + 3 + 3 + 4
    for ours, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_gradients_and_statistics_are_pytorchs():
    """In float64 and in training, of a sum in which every prediction has a weight of its own."""
    graph, params, stats = drawn("float64")
    with jax.enable_x64(True):
        shapes = jax.eval_shape(
            lambda *state: predict(nnx.merge(graph, *state), *inputs("float64"), train=False), params, stats
        )
    random = np.random.default_rng(2)
    weights = [random.normal(size=x.shape) for x in shapes]

    def weighted(params, stats):
        model = nnx.merge(graph, params, stats)
        found = predict(model, *inputs("float64"), train=True)
        total = sum((x * w).sum() for x, w in zip(found, weights, strict=True))
        return total, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    with jax.enable_x64(True):
        (total, seen), gradients = jax.jit(jax.value_and_grad(weighted, has_aux=True))(params, stats)
        seen, gradients = jax.device_get((seen, gradients))
    judge = theirs.load(theirs.TorchMaskRCNN2Go(SMALL).double(), named(params), named(stats)).train()
    expected = sum(
        (x * torch.from_numpy(w)).sum()
        for x, w in zip(judged(judge, *inputs("float64")), weights, strict=True)
    )
    expected.backward()
    assert float(total) == pytest.approx(expected.item(), rel=1e-9)
    # Our gradients under PyTorch's names, by the function that takes our parameters there.
    ours = theirs.load(theirs.TorchMaskRCNN2Go(SMALL).double(), named(gradients), named(seen))
    # Those of a bias that the norm after it takes away again are rounding, and so is what is left of large sums.
    scale = max(float(other.grad.abs().max()) for other in judge.parameters())
    for (name, own), other in zip(ours.named_parameters(), judge.parameters(), strict=True):
        np.testing.assert_allclose(own.detach(), other.grad, rtol=1e-7, atol=1e-11 * scale, err_msg=name)
    for (name, own), (_, other) in zip(ours.named_buffers(), judge.named_buffers(), strict=True):
        if "running" in name:
            np.testing.assert_allclose(own, other, rtol=1e-9, err_msg=name)


def test_torchvisions_mobilenet_v2_becomes_the_trunk():
    graph, params, stats = drawn("float32")
    judge = theirs.load(theirs.TorchMaskRCNN2Go(SMALL), named(params), named(stats))
    tensors = {f"module.{name}": x.numpy() for name, x in judge.backbone.state_dict().items()}
    tensors["module.classifier.1.bias"] = np.zeros(3, np.float32)
    found = mobilenet_v2.trunk(tensors, SMALL)
    for part, expected in (("params", params), ("model_state", stats)):
        jax.tree.map(
            np.testing.assert_array_equal, jax.tree.map(np.asarray, found[part]), expected["backbone"]
        )
    deeper = dataclasses.replace(SMALL, stages=(*SMALL.stages, (2, 8, 1, 2)))
    with pytest.raises(UserError, match=r"features\.5\.conv"):
        mobilenet_v2.trunk(tensors, deeper)
