"""SSD: its published sizes, and logits and gradients against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.ssd_resnet34 import get_config
from mlperf_jax.detection.anchors import AnchorConfig, make_anchors
from mlperf_jax.detection.training import multibox_loss
from mlperf_jax.precision import POLICIES
from mlperf_jax.weights.ssd import from_reference
from models.ssd import SSD, SSDConfig, flops_per_image

torch = pytest.importorskip("torch", reason="PyTorch is the judge")

from benchmarks.peers.ssd_resnet34 import TorchSSD, random_ssd  # noqa: E402  it needs torch
from tests.detection import reference  # noqa: E402

SMALL = SSDConfig(
    image_size=67,
    num_classes=4,
    width=4,
    stages=(2, 1, 1),
    extra_inner=(6, 5),
    extra_outer=(10, 7),
    extra_strides=(2, 1),
    extra_padding=(1, 0),
    anchors=(4, 6, 4),
)
CASES = {"small": SMALL, "every third cell": SSDConfig(**SMALL.__dict__ | {"head_stride": 3})}


@functools.cache
def graph(config, precision):
    with jax.enable_x64(precision == "float64"):
        model = nnx.eval_shape(lambda: SSD(config, policy=POLICIES[precision], rngs=nnx.Rngs(0)))
    return nnx.split(model)[0]


@functools.cache
def anchors(config):
    maps = len(config.anchors)
    scales = np.linspace(14, 70, maps + 1)
    return make_anchors(
        AnchorConfig(config.image_size, (0,) * maps, tuple(scales), config.anchors), config.feature_sizes
    )


def state_of(model, config, dtype):
    tensors = {name: array.numpy().astype(dtype) for name, array in model.state_dict().items()}
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), from_reference(tensors, config))


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_the_closed_model_has_the_references_parameters():
    config = SSDConfig(**get_config("closed").model.to_dict())
    model = nnx.eval_shape(lambda: SSD(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert count(params) == 19_972_534
    assert count(params["backbone"]) == 8_170_304
    assert sum(p.numel() for p in TorchSSD(config).parameters()) == 19_972_534


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_predictions_are_pytorchs(case, precision):
    config, dtype = CASES[case], np.dtype(precision)
    judge = random_ssd(config).eval()
    images = np.random.default_rng(0).normal(size=(2, 67, 67, 3)).astype(dtype)
    with torch.no_grad():
        expected = judge(torch.from_numpy(images).double().permute(0, 3, 1, 2))
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        state = state_of(judge, config, dtype)

        @jax.jit
        def run(state, images):
            return nnx.merge(graph(config, precision), state["params"], state["model_state"])(
                images, train=False
            )

        found = run(state, images)
    cells = sum(n**2 * a for n, a in zip(config.feature_sizes, config.anchors, strict=True))
    for ours, theirs, values in zip(found, expected, (4, config.num_classes), strict=True):
        assert ours.shape == (2, cells, values) and ours.dtype == dtype
        error = np.abs(np.asarray(ours) - theirs.numpy()).max() / np.abs(theirs.numpy()).max()
        assert error < (1e-4 if precision == "float32" else 1e-12)


def torch_loss(model, images, boxes, labels, places):
    """The multibox loss once more, differentiable by PyTorch; which anchor has which box comes from loops."""
    codes, logits = model(images)
    total = 0
    for i in range(len(images)):
        owner = reference.match(boxes[i], labels[i], places)
        wanted = torch.tensor([0 if m is None else labels[i][m] for m in owner])
        entropy = torch.nn.functional.cross_entropy(logits[i], wanted.long(), reduction="none")
        positive = wanted > 0
        count = int(positive.sum())
        targets = [reference.code(boxes[i][m], places[a]) for a, m in enumerate(owner) if m is not None]
        located = torch.nn.functional.smooth_l1_loss(
            codes[i][positive], torch.tensor(np.array(targets)), reduction="sum"
        )
        hardest = entropy[~positive].sort(descending=True).values[: 3 * count]
        total = total + (located + entropy[positive].sum() + hardest.sum()) / count
    return total / len(images)


def test_loss_and_every_gradient_are_pytorchs():
    """In float64, of a batch in training: batch norm's statistics and the mining of negatives take part."""
    config, random = SMALL, np.random.default_rng(1)
    images = random.normal(size=(3, 67, 67, 3))
    low = random.uniform(0, 0.6, (3, 2, 2))
    boxes = np.concatenate([low, low + random.uniform(0.15, 0.4, (3, 2, 2))], axis=-1)
    labels = random.integers(1, 4, (3, 2)).astype(np.int32)
    judge = random_ssd(config).train()
    with jax.enable_x64(True):
        state = state_of(judge, config, np.float64)  # before PyTorch's forward pass changes its statistics
        expected = torch_loss(
            judge, torch.from_numpy(images).permute(0, 3, 1, 2), boxes, labels, anchors(config)
        )
        expected.backward()

        @jax.jit
        def run(params, stats):
            def loss(params):
                model = nnx.merge(graph(config, "float64"), params, stats)
                found = multibox_loss(*model(images, train=True), boxes, labels, anchors(config)).mean()
                return found, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

            return jax.value_and_grad(loss, has_aux=True)(params)

        (found, stats), grads = run(state["params"], state["model_state"])
        assert float(found) == pytest.approx(expected.item(), rel=1e-10)
        for parameter in judge.parameters():  # the import turns gradients as it does weights
            parameter.data = parameter.grad
        wanted = state_of(judge, config, np.float64)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(wanted["params"]), strict=True
    ):
        np.testing.assert_allclose(
            a, b, rtol=1e-6, atol=1e-7 * np.abs(b).max(), err_msg=jax.tree_util.keystr(path)
        )
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(wanted["model_state"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_operations_are_counted_as_pytorch_runs_them():
    config = SMALL
    model, counted = TorchSSD(config), [0]

    def count_products(module, _, out):
        inputs = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
        counted[0] += 2 * inputs * out.numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count_products)
    model(torch.zeros(1, 3, 67, 67))
    assert flops_per_image(config, train=False) == counted[0]
    assert flops_per_image(config, train=True) == 3 * counted[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra_inner": (6,)}, "every extra stage"),
        ({"image_size": 20}, "too few"),
        ({"strides": (1, 2)}, "every stage"),
    ],
)
def test_sizes_that_do_not_go_together_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        SSDConfig(**SMALL.__dict__ | change)
