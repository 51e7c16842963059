"""RetinaNet: its published sizes, and predictions and gradients against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.retinanet import get_config
from mlperf_jax.detection.focal import retinanet_loss
from mlperf_jax.detection.levels import level_anchors
from mlperf_jax.precision import POLICIES
from mlperf_jax.weights.retinanet import from_reference
from models.fpn import enlarged
from models.retinanet import RetinaNet, RetinaNetConfig, flops_per_image

torch = pytest.importorskip("torch", reason="PyTorch is the judge")

from benchmarks.peers.retinanet import TorchRetinaNet, random_retinanet  # noqa: E402  it needs torch
from tests.detection import pyramid_reference as reference  # noqa: E402

# At 68 pixels maps have 9, 5 and 3 cells, so that not every one is enlarged to twice its size.
SMALL = RetinaNetConfig(
    image_size=68, num_classes=3, width=4, stages=(2, 1, 1), groups=2, channels=6, tower=1, fixed=0
)
CASES = {
    "fixed norms": SMALL,
    "ResNet, norms of the batch": RetinaNetConfig(
        **SMALL.__dict__ | {"groups": 1, "inner": 1, "fixed_norms": False, "beyond": 1}
    ),
}


@functools.cache
def graph(config, precision):
    with jax.enable_x64(precision == "float64"):
        model = nnx.eval_shape(lambda: RetinaNet(config, policy=POLICIES[precision], rngs=nnx.Rngs(0)))
    return nnx.split(model)[0]


def state_of(model, config, dtype):
    tensors = {name: array.numpy().astype(dtype) for name, array in model.state_dict().items()}
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), from_reference(tensors, config))


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_the_closed_model_has_the_references_parameters():
    config = RetinaNetConfig(**get_config("closed").model.to_dict())
    model = nnx.eval_shape(lambda: RetinaNet(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    assert count(nnx.to_pure_dict(nnx.state(model, nnx.Param))) == 37_128_876
    with torch.device("meta"):
        assert sum(p.numel() for p in TorchRetinaNet(config).parameters()) == 37_128_876
    fixed = nnx.state(model, nnx.All(nnx.Param, lambda path, _: config.is_fixed(path)))
    # Norms; the stem and the first stage's three bottlenecks with 128 channels inside.
    kernels = 49 * 3 * 64 + 64 * 128 + 2 * 256 * 128 + 3 * (9 * 4 * 128 + 128 * 256) + 64 * 256
    assert count(nnx.to_pure_dict(fixed)) == 68_224 + kernels
    assert config.feature_sizes == (100, 50, 25, 13, 7)


def test_heads_begin_with_rare_classes():
    @jax.jit
    def drawn():
        model = RetinaNet(SMALL, policy=POLICIES["float32"], rngs=nnx.Rngs(0))
        return (
            model.classes.last.bias[...],
            model.classes.tower[0].kernel[...],
            model.pyramid.output[0].kernel[...],
        )

    bias, tower, output = map(np.asarray, drawn())
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), 0.01, rtol=1e-5)
    assert 0.008 < tower.std() < 0.012
    assert np.abs(output).max() <= np.sqrt(3 / (9 * 6)) and output.std() == pytest.approx(
        (9 * 6) ** -0.5, rel=0.1
    )


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_predictions_are_pytorchs(case, precision):
    config, dtype = CASES[case], np.dtype(precision)
    judge = random_retinanet(config).eval()
    images = np.random.default_rng(0).normal(size=(2, 68, 68, 3)).astype(dtype)
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
    for ours, theirs, values in zip(found, expected, (4, config.num_classes), strict=True):
        shapes = [(2, 9 * n**2, values) for n in config.feature_sizes]
        assert [x.shape for x in ours] == shapes and ours[0].dtype == dtype
        error = np.abs(np.concatenate(ours, 1) - theirs.numpy()).max() / np.abs(theirs.numpy()).max()
        assert error < (1e-4 if precision == "float32" else 1e-12)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_every_gradient_are_pytorchs(case):
    """In float64, in training: with norms of the batch and their statistics, and with norms that stay."""
    config, random = CASES[case], np.random.default_rng(1)
    sizes = tuple(10 << i for i in range(len(config.feature_sizes)))
    levels = level_anchors(68, config.feature_sizes, sizes)
    places = torch.cat(reference.anchors(68, config.feature_sizes, sizes)).double()
    images = random.normal(size=(2, 68, 68, 3))
    low = random.uniform(0, 40, (2, 2, 2))
    boxes = np.concatenate([low, low + random.uniform(8, 28, (2, 2, 2))], axis=-1)
    labels = random.integers(1, 4, (2, 2)).astype(np.int32)
    judge = random_retinanet(config).train()
    with jax.enable_x64(True):
        state = state_of(judge, config, np.float64)  # before PyTorch's forward pass changes its statistics
        codes, logits = judge(torch.from_numpy(images).permute(0, 3, 1, 2))
        expected = sum(
            reference.loss(
                codes[i], logits[i], torch.tensor(boxes[i]), torch.tensor(labels[i]).long(), places
            )
            for i in range(2)
        )
        (expected / 2).backward()

        @jax.jit
        def run(params, stats):
            def loss(params):
                model = nnx.merge(graph(config, "float64"), params, stats)
                found = retinanet_loss(*model(images, train=True), boxes, labels, levels).mean()
                return found, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

            return jax.value_and_grad(loss, has_aux=True)(params)

        (found, stats), grads = run(state["params"], state["model_state"])
        assert float(found) == pytest.approx(expected.item() / 2, rel=1e-10)
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


def test_maps_are_enlarged_as_pytorch_does():
    random = np.random.default_rng(0)
    for there, wanted in ((3, 5), (5, 10), (7, 13), (1, 2), (4, 4), (3, 8)):
        x = random.normal(size=(2, there, there, 3)).astype(np.float32)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(x).permute(0, 3, 1, 2), size=(wanted, wanted), mode="nearest"
        )
        np.testing.assert_array_equal(enlarged(x, (wanted, wanted)), expected.permute(0, 2, 3, 1))


def test_operations_are_counted_as_pytorch_runs_them():
    """Of the whole forward pass; of training three times those, but once of what nothing trained lies before."""
    counts = {}
    for fixed in (0, 1, 2):
        config = RetinaNetConfig(**SMALL.__dict__ | {"fixed": fixed})
        model, found = TorchRetinaNet(config), dict.fromkeys(("fixed", "all"), 0)

        def count_products(module, _, out, found=found, config=config, names=None):
            inputs = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            found["all"] += 2 * inputs * out.numel()
            if module in names:
                found["fixed"] += 2 * inputs * out.numel()

        body = model.backbone.body
        names = [m for part in [body.conv1, body.layer1][:fixed] for m in part.modules()]
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(functools.partial(count_products, names=names))
        model(torch.zeros(1, 3, 68, 68))
        assert flops_per_image(config, train=False) == found["all"]
        assert flops_per_image(config, train=True) == 3 * found["all"] - 2 * found["fixed"]
        counts[fixed] = found["fixed"]
    assert counts[0] == 0 < counts[1] < counts[2]


def test_a_single_stage_is_refused():
    with pytest.raises(ValueError, match="two or more"):
        RetinaNetConfig(stages=(3,))
