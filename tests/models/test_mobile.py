"""MobileNet and ShuffleNet against independent PyTorch ones, through their published names, and their sizes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.precision import POLICIES
from mlperf_jax.weights import mobilenet as mobilenet_weights
from mlperf_jax.weights import shufflenet as shufflenet_weights
from models import mobilenet, shufflenet
from models.mobilenet import MobileNet, MobileNetConfig
from models.shufflenet import ShuffleNet, ShuffleNetConfig, average_pool, channel_shuffle

BLOCKS = ((16, 1), (24, 2), (24, 1), (40, 2))
SMALL = MobileNetConfig(stem=8, blocks=BLOCKS, num_classes=7, image_size=37)
V2 = ShuffleNetConfig(widths=(20, 36), repeats=(2, 3), stem_width=8, last=24, num_classes=7, image_size=43)
V1 = ShuffleNetConfig(
    version=1, widths=(36, 60), repeats=(2, 3), stem_width=12, num_classes=7, image_size=43, groups=3
)


def built(config, policy="float32"):
    """(graph, params, statistics) as shapes."""
    kind = MobileNet if isinstance(config, MobileNetConfig) else ShuffleNet
    model = nnx.eval_shape(lambda: kind(config, policy=POLICIES[policy], rngs=nnx.Rngs(params=0)))
    graph, params, stats = nnx.split(model, nnx.Param, ...)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


@pytest.mark.parametrize(
    ("config", "parameters", "gflops"),
    [
        (MobileNetConfig(), 4_231_976, 1.137),
        (MobileNetConfig(num_classes=1001), 4_233_001, 1.137),
        (ShuffleNetConfig(), 2_278_604, 0.290),
        (ShuffleNetConfig.v1(), 1_865_728, 0.275),
    ],
)
def test_sizes_are_the_published_ones(config, parameters, gflops):
    """MobileNet: 569 million multiply-adds, ShuffleNet v2 146 (the authors count 145), v1 138, as published."""
    _, params, _ = built(config)
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(params)) == parameters
    module = mobilenet if isinstance(config, MobileNetConfig) else shufflenet
    assert module.flops_per_image(config, train=False) / 1e9 == pytest.approx(gflops, abs=1e-3)
    assert module.flops_per_image(config, train=True) == 3 * module.flops_per_image(config, train=False)


@pytest.mark.parametrize("config", [SMALL, V2, V1, MobileNetConfig.mini(), ShuffleNetConfig.mini()])
def test_every_parameter_names_its_axes(config):
    kind = MobileNet if isinstance(config, MobileNetConfig) else ShuffleNet
    model = nnx.eval_shape(lambda: kind(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        assert len(variable.get_metadata()["axes"]) == len(variable.shape), path


def test_shuffling_deals_out_by_turns():
    x = jnp.arange(6.0)[None, None, None]
    assert channel_shuffle(x, 2).ravel().tolist() == [0, 3, 1, 4, 2, 5]
    assert channel_shuffle(channel_shuffle(x, 2), 3).ravel().tolist() == x.ravel().tolist()


def test_the_average_counts_what_is_beyond_the_border():
    pooled = average_pool(jnp.ones((1, 5, 5, 1)))[0, :, :, 0]
    np.testing.assert_allclose(9 * pooled, [[4, 6, 4], [6, 9, 6], [4, 6, 4]])


def test_impossible_sizes_are_refused():
    for wrong in (dict(version=3), dict(stem="big"), dict(widths=(8,))):
        with pytest.raises(ValueError, match="neither|as many"):
            ShuffleNetConfig(**wrong)
    with pytest.raises(ValueError, match="padding"):
        MobileNetConfig(padding="same")


# Against PyTorch.


def judged(config):
    """(PyTorch's model, its arrays under published names, what reads them)."""
    pytest.importorskip("torch", reason="PyTorch is the independent judge")
    from benchmarks.peers import mobilenet as judge
    from benchmarks.peers import shufflenet as judge_of_shuffle

    if isinstance(config, MobileNetConfig):
        model = judge.MobileNet(config.stem, config.blocks, config.num_classes)
        judge.randomise(model, 1)
        return model, model.tensorflow_names(), mobilenet_weights.published
    model = judge_of_shuffle.ShuffleNet(
        config.version,
        config.widths,
        config.repeats,
        config.groups,
        config.stem_width,
        config.last,
        config.num_classes,
        pool=True,
    )
    judge.randomise(model, 1)
    named = {name: array.numpy() for name, array in model.state_dict().items()}
    return model, named, shufflenet_weights.from_torch


def ours(config, tensors, read, policy="float32"):
    graph, params, stats = built(config, policy)
    state = jax.tree.map(np.asarray, read(tensors, config))
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, {"params": params, "model_state": stats})
    return graph, state["params"], state["model_state"]


def images(config, dtype=np.float32):
    size = config.image_size
    return np.random.default_rng(2).normal(size=(3, size, size, 3)).astype(dtype)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("config", [SMALL, V2, V1], ids=["mobilenet", "v2", "v1"])
def test_logits_and_statistics_equal_torchs(config, train):
    model, tensors, read = judged(config)
    import torch

    graph, params, stats = ours(config, tensors, read)
    x = images(config)

    @jax.jit
    def forward(params, stats, x):
        model = nnx.merge(graph, params, stats)
        logits = model(x, train=train)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    logits, seen = forward(params, stats, x)
    with torch.no_grad():
        expected = model.train(train)(torch.as_tensor(x.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    if train:  # the running statistics that the judge has now are those that ours has
        after = model.tensorflow_names() if config is SMALL else dict(model.state_dict())
        after = {name: np.asarray(array) for name, array in after.items()}
        want = jax.tree.map(np.asarray, read(after, config))["model_state"]
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-4), seen, want)


@pytest.mark.parametrize("config", [SMALL, V2, V1], ids=["mobilenet", "v2", "v1"])
def test_gradients_equal_torchs_in_float64(config):
    model, tensors, read = judged(config)
    import torch

    x, labels = images(config, np.float64), np.array([0, 3, 6])
    with jax.enable_x64(True):
        graph, params, stats = ours(config, tensors, read, "float64")
        params, stats = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, stats))

        @jax.jit
        def gradients(params):
            def loss(params):
                logits = nnx.merge(graph, params, stats)(jnp.asarray(x), train=True)
                return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

            return jax.grad(loss)(params)

        found = jax.tree.map(np.asarray, gradients(params))
    model.double().train()
    logits = model(torch.as_tensor(x.transpose(0, 3, 1, 2)))
    torch.nn.functional.cross_entropy(logits, torch.as_tensor(labels)).backward()
    with torch.no_grad():  # the gradients stand where the parameters were, and are read by the same names
        for parameter in model.parameters():
            parameter.data = parameter.grad
    wide = (
        model.tensorflow_names() if config is SMALL else {n: t.numpy() for n, t in model.state_dict().items()}
    )
    want = jax.tree.map(np.asarray, read(_as_is(wide), config))["params"]
    if config is V1:  # the judge's classifier has no bias
        found["head"]["bias"] = want["head"]["bias"]
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6 * np.abs(e).max() + 1e-12),
        found,
        want,
    )


def _as_is(tensors):
    return {name: np.asarray(array, np.float32) for name, array in tensors.items()}


def test_other_weights_are_refused():
    _, tensors, read = judged(V2)
    with pytest.raises(UserError, match=r"have no stage2\.0\.branch1"):
        read({name: array for name, array in tensors.items() if "branch1" not in name}, V2)
    with pytest.raises(UserError, match=r"which this model does not"):
        read(tensors | {"stage9.weight": np.zeros(3, np.float32)}, V2)
    with pytest.raises(UserError, match="mobilenet_v1 checkpoints"):
        mobilenet_weights.published(tensors, SMALL)
