"""MiniGo's network against one in PyTorch, and its size against the reference's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.precision import POLICIES
from models.minigo import DualNetwork, DualNetworkConfig, flops_per_position

torch = pytest.importorskip("torch", reason="PyTorch is the independent judge here")

SMALL = DualNetworkConfig(size=5, conv_width=8, trunk_layers=2, fc_width=6)


def build(config):
    """The graph, and random variables of its shapes."""
    model = nnx.eval_shape(lambda: DualNetwork(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    random = np.random.default_rng(3)

    def draw(path, leaf):
        array = random.normal(size=leaf.shape) / 4
        return jnp.asarray(1 + abs(array) if path[-1].key in ("scale", "var") else array, leaf.dtype)

    shapes = {"params": nnx.to_pure_dict(params), "model_state": nnx.to_pure_dict(rest)}
    return graph, jax.tree_util.tree_map_with_path(draw, shapes)


def transcription(config, variables):
    from benchmarks.peers.minigo import TorchMiniGo, copy_into

    model = TorchMiniGo(config.size, config.planes, config.conv_width, config.trunk_layers, config.fc_width)
    copy_into(model, jax.device_get(variables))
    return model


@pytest.mark.parametrize(
    ("config", "count"),
    [(DualNetworkConfig(), 736_671), (DualNetworkConfig(size=9, trunk_layers=9), 692_343)],
)
def test_parameter_count(config, count):
    from benchmarks.peers.minigo import TorchMiniGo

    model = nnx.eval_shape(lambda: DualNetwork(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[1])
    assert sum(p.size for p in jax.tree.leaves(params)) == count
    judge = TorchMiniGo(config.size, 13, 64, config.trunk_layers, 64)
    assert sum(p.numel() for p in judge.parameters()) == count


@pytest.mark.parametrize("train", [False, True])
def test_forward_and_gradients_equal_pytorch(train):
    graph, variables = build(SMALL)
    judge = transcription(SMALL, variables).train(train)
    random = np.random.default_rng(1)
    planes = random.integers(0, 2, (6, 5, 5, 13)).astype(np.float32)
    policy = random.dirichlet(np.ones(26), 6).astype(np.float32)
    outcome = random.choice([-1.0, 1.0], 6).astype(np.float32)

    def loss(params, model_state):
        model = nnx.merge(graph, params, model_state)
        logits, value = model(jnp.asarray(planes), train=train)
        cost = -(policy * jax.nn.log_softmax(logits)).sum(1).mean() + 0.5 * jnp.square(value - outcome).mean()
        return cost, (logits, value, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param))))

    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    (_, (logits, value, stats)), grads = jax.jit(value_and_grad)(
        variables["params"], variables["model_state"]
    )

    logits_t, value_t = judge(torch.tensor(planes))
    cost = torch.nn.functional.cross_entropy(logits_t, torch.tensor(policy))
    (cost + 0.5 * torch.nn.functional.mse_loss(value_t, torch.tensor(outcome))).backward()
    np.testing.assert_allclose(logits, logits_t.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, value_t.detach().numpy(), rtol=1e-4, atol=1e-5)

    expected = {name: p.grad.numpy() for name, p in judge.named_parameters()}
    expected |= {name: b.numpy() for name, b in judge.named_buffers() if "running" in name}
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    for path, leaf in [
        *jax.tree_util.tree_leaves_with_path(grads),
        *jax.tree_util.tree_leaves_with_path(stats),
    ]:
        keys = [k.key for k in path]
        judged = expected.pop(".".join([*keys[:-1], names.get(keys[-1], keys[-1])]))
        if keys[-1] == "kernel":
            judged = judged.transpose(2, 3, 1, 0) if judged.ndim == 4 else judged.T
        scale = np.abs(judged).max()
        np.testing.assert_allclose(leaf, judged, rtol=1e-4, atol=1e-4 * scale + 1e-7, err_msg=str(keys))
    assert not expected


def test_flops_by_hand():
    config = DualNetworkConfig(size=3, planes=2, conv_width=4, trunk_layers=1, fc_width=5)
    multiplications = 9 * 9 * (2 * 4 + 4 * 4 * 2) + 9 * 4 * 3 + 18 * 10 + 9 * 5 + 5
    assert flops_per_position(config, train=False) == 2 * multiplications
