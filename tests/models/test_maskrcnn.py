"""Mask R-CNN: its published sizes, and predictions and gradients against PyTorch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.precision import POLICIES
from mlperf_jax.weights.maskrcnn import from_reference
from models.maskrcnn import MaskRCNN, MaskRCNNConfig, flops_per_image

torch = pytest.importorskip("torch", reason="PyTorch is the judge")

from benchmarks.peers.maskrcnn import TorchMaskRCNN, random_maskrcnn  # noqa: E402  it needs torch

SMALL = MaskRCNNConfig(
    num_classes=3,
    width=4,
    stages=(2, 1, 1),
    channels=6,
    dense=10,
    box_window=3,
    mask_window=4,
    mask_channels=(6, 5),
    fixed=0,
)
# Norms that stay as they are, and those of the batch.
CASES = (SMALL, dataclasses.replace(SMALL, fixed_norms=False, strided="3x3", norm_epsilon=1e-5))
HEIGHT, WIDTH, BOXES = 64, 80, 3


@functools.cache
def graph(config, precision):
    with jax.enable_x64(precision == "float64"):
        model = nnx.eval_shape(lambda: MaskRCNN(config, policy=POLICIES[precision], rngs=nnx.Rngs(0)))
    return nnx.split(model)[0]


def state_of(model, config, dtype):
    tensors = {name: array.numpy().astype(dtype) for name, array in model.state_dict().items()}
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), from_reference(tensors, config))


def predict(model, images, box_features, mask_features, train):
    """Everything that the network says, in the order of `judged`."""
    levels, logits, codes = model(images, train=train)
    return [*levels, *logits, *codes, *model.boxes(box_features), model.masks(mask_features)]


def judged(judge, images, box_features, mask_features):
    """The same by PyTorch, from and in channels last."""
    first = [torch.from_numpy(x).double().movedim(-1, -3) for x in (images, box_features, mask_features)]
    levels, logits, codes = judge(first[0])
    boxes = [x.unflatten(0, (2, BOXES)) for x in judge.boxes(first[1].flatten(0, 1))]
    masks = judge.masks(first[2].flatten(0, 1)).unflatten(0, (2, BOXES))
    return [*(x.movedim(1, -1) for x in levels), *logits, *codes, *boxes, masks.movedim(2, -1)]


def inputs(config, dtype):
    random = np.random.default_rng(0)
    windows = [(2, BOXES, n, n, config.channels) for n in (config.box_window, config.mask_window)]
    return [random.normal(size=shape).astype(dtype) for shape in ((2, HEIGHT, WIDTH, 3), *windows)]


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(("classes", "whole"), [(91, 44_454_513), (81, 44_400_693)])
def test_the_closed_model_has_the_references_parameters(classes, whole):
    config = MaskRCNNConfig(num_classes=classes)
    model = nnx.eval_shape(lambda: MaskRCNN(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    assert count(nnx.to_pure_dict(nnx.state(model, nnx.Param))) == whole
    with torch.device("meta"):
        assert sum(p.numel() for p in TorchMaskRCNN(config).parameters()) == whole

    def names(path, _):
        return any(str(name).startswith("norm") for name in path)

    assert count(nnx.to_pure_dict(nnx.state(model, nnx.All(nnx.Param, names)))) == 53_120
    fixed = nnx.state(model, nnx.All(nnx.Param, lambda path, _: config.is_fixed(path)))
    # Norms; the stem and the first stage's three bottlenecks with 64 channels inside.
    kernels = 49 * 3 * 64 + 64 * 64 + 2 * 256 * 64 + 3 * (9 * 64 * 64 + 64 * 256) + 64 * 256
    assert count(nnx.to_pure_dict(fixed)) == 53_120 + kernels
    assert config.strides == (4, 8, 16, 32, 64)


def test_layers_start_as_the_references():
    @jax.jit
    def drawn():
        config = dataclasses.replace(SMALL, channels=32, dense=64, mask_channels=(32,))
        model = MaskRCNN(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0))
        return (
            model.proposals.conv.kernel[...],
            model.boxes.first.kernel[...],
            model.boxes.classes.kernel[...],
            model.boxes.codes.kernel[...],
            model.masks.convs[0].kernel[...],
            model.masks.enlarged.kernel[...],
        )

    wanted = 0.01, (9 * 32) ** -0.5, 0.01, 0.001, (2 / (9 * 32)) ** 0.5, (2 / (4 * 32)) ** 0.5
    for kernel, deviation in zip(drawn(), wanted, strict=True):
        assert np.std(kernel) == pytest.approx(deviation, rel=0.15)
    assert np.abs(drawn()[1]).max() <= np.sqrt(3 / (9 * 32))


@pytest.mark.parametrize(("case", "precision"), [(0, "float32"), (1, "float32"), (1, "float64")])
def test_predictions_are_pytorchs(case, precision):
    config, dtype = CASES[case], np.dtype(precision)
    judge = random_maskrcnn(config).eval()
    given = inputs(config, dtype)
    with torch.no_grad():
        expected = judged(judge, *given)
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        state = state_of(judge, config, dtype)

        @jax.jit
        def run(state, given):
            model = nnx.merge(graph(config, precision), state["params"], state["model_state"])
            return predict(model, *given, train=False)

        found = run(state, given)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == dtype
        error = np.abs(ours - theirs.numpy()).max() / np.abs(theirs.numpy()).max()
        assert error < (1e-4 if precision == "float32" else 1e-12)


def test_every_gradient_is_pytorchs():
    """In float64, in training: of a sum of all predictions, each weighted at random; of fixed norms the workload's loss is held so."""
    config = CASES[1]
    judge = random_maskrcnn(config).train()
    given = inputs(config, np.float64)
    with jax.enable_x64(True):
        state = state_of(judge, config, np.float64)  # before PyTorch's forward pass changes its statistics
        predicted = judged(judge, *given)
        random = np.random.default_rng(1)
        weights = [random.normal(size=tuple(x.shape)) for x in predicted]
        expected = sum((x * torch.from_numpy(w)).sum() for x, w in zip(predicted, weights, strict=True))
        expected.backward()

        @jax.jit
        def run(params, stats):
            def loss(params):
                model = nnx.merge(graph(config, "float64"), params, stats)
                found = predict(model, *given, train=True)
                total = sum((x * w).sum() for x, w in zip(found, weights, strict=True))
                return total, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

            return jax.value_and_grad(loss, has_aux=True)(params)

        (found, stats), grads = run(state["params"], state["model_state"])
        assert float(found) == pytest.approx(expected.item(), rel=1e-9)
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
    """Of the whole forward pass; of training three times those, but once of what nothing trained lies before."""
    for fixed in (0, 1, 2):
        config = dataclasses.replace(SMALL, fixed=fixed)
        model, found = TorchMaskRCNN(config), dict.fromkeys(("fixed", "all"), 0)
        names = [m for part in list(model.body.values())[:fixed] for m in part.modules()]

        def count_products(module, given, out, found=found, names=names):
            if isinstance(module, torch.nn.ConvTranspose2d):
                products = module.weight[0].numel() * given[0].numel()
            else:
                products = module.weight[0].numel() * out.numel()
            found["all"] += 2 * products
            if module in names:
                found["fixed"] += 2 * products

        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear | torch.nn.ConvTranspose2d):
                module.register_forward_hook(count_products)
        model(torch.zeros(1, 3, HEIGHT, WIDTH))
        model.boxes(torch.zeros(7, 6, 3, 3))
        model.masks(torch.zeros(5, 6, 4, 4))
        size = (HEIGHT, WIDTH)
        assert flops_per_image(config, size, 7, 5, train=False) == found["all"]
        assert flops_per_image(config, size, 7, 5, train=True) == 3 * found["all"] - 2 * found["fixed"]


def test_a_stride_elsewhere_is_refused():
    with pytest.raises(ValueError, match="neither '3x3' nor '1x1'"):
        MaskRCNNConfig(strided="2x2").trunk  # noqa: B018  it is checked where it is made
