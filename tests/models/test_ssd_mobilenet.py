"""SSD-MobileNet: its published sizes, predictions and gradients against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.ssd_mobilenet import get_config
from mlperf_jax.detection.grid_anchors import GridAnchorConfig, make_grid_anchors
from mlperf_jax.detection.mined_sigmoid import mined_loss
from mlperf_jax.precision import POLICIES
from models.ssd_mobilenet import SSDMobileNet, SSDMobileNetConfig, flops_per_image

torch = pytest.importorskip("torch", reason="PyTorch is the judge")

from benchmarks.peers.mobilenet import randomise  # noqa: E402  it needs torch
from benchmarks.peers.ssd_mobilenet import TorchSSDMobileNet, decode, layers, mined  # noqa: E402
from tests.detection import reference, reference_mined  # noqa: E402

SMALL = SSDMobileNetConfig(
    image_size=35,
    num_classes=4,
    stem=8,
    blocks=((12, 1), (16, 2), (16, 1), (24, 2)),
    taken_after=(3, 4),
    extra_inner=(6, 5),
    extra_outer=(10, 7),
    anchors=(3, 6, 6, 6),
)
ANCHORS = make_grid_anchors(GridAnchorConfig(), SMALL.feature_sizes)

# The variables of tensorflow/models' detector by their place, as its graph has them: (kernel's shape, bias or norm).
_STAGES = ((1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 64, 128))
_MAPS = ((512, 3), (1024, 6), (512, 6), (256, 6), (256, 6), (128, 6))


def published_sizes():
    """Name -> number of trained values of ssd_mobilenet_v1_coco."""
    scope, sizes, features = "FeatureExtractor/MobilenetV1", {"Conv2d_0": 9 * 3 * 32 + 2 * 32}, 32
    widths = (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
    for i, width in enumerate(widths, 1):
        sizes[f"Conv2d_{i}_depthwise"] = 9 * features + 2 * features
        sizes[f"Conv2d_{i}_pointwise"] = features * width + 2 * width
        features = width
    for i, (inputs, inner, outer) in enumerate(_STAGES, 2):
        sizes[f"Conv2d_13_pointwise_1_Conv2d_{i}_1x1_{inner}"] = inputs * inner + 2 * inner
        sizes[f"Conv2d_13_pointwise_2_Conv2d_{i}_3x3_s2_{outer}"] = 9 * inner * outer + 2 * outer
    sizes = {f"{scope}/{name}": size for name, size in sizes.items()}
    for i, (inputs, anchors) in enumerate(_MAPS):
        sizes[f"BoxPredictor_{i}/BoxEncodingPredictor"] = (inputs + 1) * 4 * anchors
        sizes[f"BoxPredictor_{i}/ClassPredictor"] = (inputs + 1) * 91 * anchors
    return sizes


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_the_closed_model_has_the_references_parameters():
    config = SSDMobileNetConfig(**get_config("closed").model.to_dict())
    model = nnx.eval_shape(lambda: SSDMobileNet(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    sizes = published_sizes()
    assert count(params) == sum(sizes.values()) == 6_819_839
    trunk = params["backbone"]
    assert count(trunk) == 3_206_976
    scope = "FeatureExtractor/MobilenetV1"
    for i in range(1, 14):
        block = trunk["blocks"][f"block{i}"]
        assert count([block["depthwise"], block["norm1"]]) == sizes[f"{scope}/Conv2d_{i}_depthwise"]
        assert count([block["pointwise"], block["norm2"]]) == sizes[f"{scope}/Conv2d_{i}_pointwise"]
    for i in range(6):
        head = params["heads"][f"map{i + 1}"]
        assert count(head["boxes"]) == sizes[f"BoxPredictor_{i}/BoxEncodingPredictor"]
        assert count(head["classes"]) == sizes[f"BoxPredictor_{i}/ClassPredictor"]
    assert config.feature_sizes == (19, 10, 5, 3, 2, 1)


@functools.cache
def graph(precision):
    with jax.enable_x64(precision == "float64"):
        model = nnx.eval_shape(lambda: SSDMobileNet(SMALL, policy=POLICIES[precision], rngs=nnx.Rngs(0)))
    return nnx.split(model)[0]


def arrays_of(judge, dtype):
    """Params and statistics in our layout."""
    found = {"params": {}, "model_state": {}}

    def put(part, path, name, tensor):
        place = found[part]
        for key in path:
            place = place.setdefault(key, {})
        values = tensor.detach().numpy()
        place[name] = jnp.asarray(values.transpose(2, 3, 1, 0) if values.ndim == 4 else values, dtype)

    for path, layer in layers(judge):
        if isinstance(layer, torch.nn.BatchNorm2d):
            put("params", path, "scale", layer.weight)
            put("params", path, "bias", layer.bias)
            put("model_state", path, "mean", layer.running_mean)
            put("model_state", path, "var", layer.running_var)
        else:
            put("params", path, "kernel", layer.weight)
            if layer.bias is not None:
                put("params", path, "bias", layer.bias)
    return found


@functools.cache
def judged():
    return randomise(TorchSSDMobileNet(SMALL).double(), 0)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_predictions_are_pytorchs(precision):
    dtype, judge = np.dtype(precision), judged().eval()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 35, 35, 3)).astype(dtype)
    with torch.no_grad():
        expected = judge(torch.from_numpy(images).double().permute(0, 3, 1, 2))
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        state = arrays_of(judge, dtype)

        @jax.jit
        def run(state, images):
            return nnx.merge(graph(precision), state["params"], state["model_state"])(images, train=False)

        found = run(state, images)
    for ours, theirs, values in zip(found, expected, (4, 4), strict=True):
        assert ours.shape == (2, len(ANCHORS), values) and ours.dtype == dtype
        error = np.abs(np.asarray(ours) - theirs.numpy()).max() / np.abs(theirs.numpy()).max()
        assert error < (1e-4 if precision == "float32" else 1e-12)


def torch_loss(model, images, boxes, labels, threshold):
    """The mined loss once more, differentiable by PyTorch; which anchors count comes from loops."""
    total, matches = 0, 0
    codes, logits = model(images)
    for i in range(len(images)):
        owner = reference_mined.match(boxes[i], labels[i], ANCHORS)
        wanted = torch.tensor([0 if m is None else labels[i][m] for m in owner])
        truth = torch.nn.functional.one_hot(wanted.long(), 4).double()
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits[i], truth, reduction="none")
        losses = losses.sum(-1)
        predicted = [
            reference_mined.decoded(c, anchor)
            for c, anchor in zip(codes[i].detach().numpy(), ANCHORS, strict=True)
        ]
        for a in reference_mined.mined(losses.detach().numpy(), predicted, owner, threshold):
            total = total + losses[a]
            if owner[a] is not None:
                target = torch.tensor(reference.code(boxes[i][owner[a]], ANCHORS[a]))
                total = total + torch.nn.functional.smooth_l1_loss(codes[i][a], target, reduction="sum")
        matches += sum(m is not None for m in owner)
    return total / matches


def test_loss_and_every_gradient_are_pytorchs():
    """In float64, of a batch in training: batch norm's statistics and the mining take part."""
    random = np.random.default_rng(1)
    images = random.uniform(-1, 1, (3, 35, 35, 3))
    low = random.uniform(0, 0.6, (3, 2, 2))
    boxes = np.concatenate([low, low + random.uniform(0.15, 0.4, (3, 2, 2))], axis=-1)
    labels = random.integers(1, 4, (3, 2)).astype(np.int32)
    judge = randomise(TorchSSDMobileNet(SMALL).double(), 0).train()
    with jax.enable_x64(True):
        state = arrays_of(judge, np.float64)
        expected = torch_loss(judge, torch.from_numpy(images).permute(0, 3, 1, 2), boxes, labels, 0.9)
        expected.backward()

        @jax.jit
        def run(params, stats):
            def loss(params):
                model = nnx.merge(graph("float64"), params, stats)
                total, weight = mined_loss(*model(images, train=True), boxes, labels, ANCHORS, mining_iou=0.9)
                return total / weight

            return jax.value_and_grad(loss)(params)

        found, grads = run(state["params"], state["model_state"])
        assert float(found) == pytest.approx(expected.item(), rel=1e-10)
        for parameter in judge.parameters():
            parameter.data = parameter.grad
        wanted = arrays_of(judge, np.float64)["params"]
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(
            a, b, rtol=1e-6, atol=1e-7 * np.abs(b).max(), err_msg=jax.tree_util.keystr(path)
        )


def test_the_peers_mining_is_that_of_plain_loops():
    random = np.random.default_rng(5)
    losses, codes = random.uniform(1, 4, (2, len(ANCHORS))), random.normal(size=(2, len(ANCHORS), 4)) * 3
    predicted = decode(torch.tensor(codes), torch.tensor(ANCHORS))
    matched = random.random(losses.shape) < 0.1
    found = mined(torch.tensor(losses), predicted, torch.tensor(matched), 0.4).numpy()
    for row in range(2):
        owner = [0 if yes else None for yes in matched[row]]
        boxes = predicted[row].numpy()
        assert set(np.flatnonzero(found[row])) == set(reference_mined.mined(losses[row], boxes, owner, 0.4))


def test_operations_are_counted_as_pytorch_runs_them():
    model, counted = TorchSSDMobileNet(SMALL), [0]

    def count_products(module, _, out):
        inputs = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        counted[0] += 2 * inputs * out.numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count_products)
    model.eval()(torch.zeros(1, 3, 35, 35))
    assert flops_per_image(SMALL, train=False) == counted[0]
    assert flops_per_image(SMALL, train=True) == 3 * counted[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra_inner": (6,)}, "every extra stage"),
        ({"anchors": (3, 6, 6)}, "every map"),
        ({"taken_after": (2, 3)}, "the last block, 4"),
    ],
)
def test_sizes_that_do_not_go_together_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        SSDMobileNetConfig(**SMALL.__dict__ | change)
