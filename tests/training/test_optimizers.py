"""LARS and SGD, twenty steps each, against float64 NumPy transcriptions of the rules' equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from mlperf_jax.errors import UserError
from mlperf_jax.training import momentum
from mlperf_jax.training.optimizers import decay_mask, make_optimizer
from mlperf_jax.training.schedules import polynomial_with_warmup

STEPS = 20
SHAPES = {
    "stem": {"conv": {"kernel": (3, 3, 2, 4)}},
    "norm": {"scale": (4,), "bias": (4,)},
    "head": {"kernel": (4, 3), "bias": (3,)},
}
IS_SHAPE = {"is_leaf": lambda x: isinstance(x, tuple)}
MASK = {
    "stem": {"conv": {"kernel": True}},
    "norm": {"scale": False, "bias": False},
    "head": {"kernel": True, "bias": False},
}


def config_for(name, **numbers):
    numbers = dict(momentum=0.9, weight_decay=1e-2, trust_coefficient=0.001, epsilon=0.0) | numbers
    return ConfigDict(dict(name=name, base_lr=2.0, **numbers))


def random_tree(rng, size):
    return jax.tree.map(lambda shape: rng.normal(0, size, shape), SHAPES, **IS_SHAPE)


def transcribed(config, schedule, params, gradients):
    """The parameters after all steps, one array at a time, in float64."""

    def one(w, decays, *grads):
        m = np.zeros_like(w)
        for step, g in enumerate(grads):
            lr = float(schedule(step))
            trust = 1.0
            if decays and config.name == "lars":
                w_norm, g_norm = np.linalg.norm(w.ravel()), np.linalg.norm(g.ravel())
                if w_norm > 0 and g_norm > 0:
                    denominator = g_norm + config.weight_decay * w_norm + config.epsilon
                    trust = config.trust_coefficient * w_norm / denominator
            if decays:
                g = g + config.weight_decay * w
            m = config.momentum * m - lr * trust * g
            w = w + m
        return w

    return jax.tree.map(one, params, MASK, *gradients)


def optimized(config, schedule, params, gradients, dtype):
    optimizer = make_optimizer(config, schedule, decay_mask(params))
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    gradients = jax.tree.map(lambda *g: jnp.asarray(np.stack(g), dtype), *gradients)

    def step(carry, g):
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, optimizer.init(p)), g)[0])(params, gradients)


@pytest.mark.parametrize("name", ["sgd", "lars"])
@pytest.mark.parametrize(
    ("seed", "size", "momentum", "epsilon"),
    [(0, 1e-4, 0.9, 0.0), (1, 0.1, 0.951807, 1e-3), (2, 10.0, 0.0, 0.0)],
)
def test_twenty_steps_equal_numpys(name, seed, size, momentum, epsilon):
    rng = np.random.default_rng(seed)
    params, gradients = random_tree(rng, 1.0), [random_tree(rng, size) for _ in range(STEPS)]
    config = config_for(name, momentum=momentum, epsilon=epsilon)
    schedule = polynomial_with_warmup(0.05 if name == "sgd" else 2.0, 5, 12)
    expected = transcribed(config, schedule, params, gradients)
    actual, state = optimized(config, schedule, params, gradients, np.float32)
    scale = max(1.0, size)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5 * scale), actual, expected
    )
    assert state.count == STEPS
    with jax.enable_x64(True):
        exact, _ = optimized(config, schedule, params, gradients, np.float64)
        expected = transcribed(config, schedule, params, gradients)  # the schedule is float64 too now
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12), exact, expected)


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_arrays_of_zeros_move_like_plain_momentum(name):
    """Where |w| or |g| is zero the trust ratio is 1: nothing divides by zero."""
    zeros = jax.tree.map(np.zeros, SHAPES, **IS_SHAPE)
    ones = jax.tree.map(np.ones, SHAPES, **IS_SHAPE)
    config = config_for(name, weight_decay=0.0)
    for params, grads in ((zeros, ones), (ones, zeros), (zeros, zeros)):
        actual, _ = optimized(config, lambda step: 0.5, params, [grads], np.float32)
        jax.tree.map(lambda a, w, g: np.testing.assert_array_equal(a, w - 0.5 * g), actual, params, grads)


def test_sgd_follows_the_gradient_of_a_loss_with_l2():
    rng = np.random.default_rng(0)
    params = random_tree(rng, 1.0)
    config = config_for("sgd", momentum=0.0)

    def l2(params):
        kernels = params["stem"]["conv"]["kernel"], params["head"]["kernel"]
        return 0.5 * config.weight_decay * sum(jnp.sum(kernel**2) for kernel in kernels)

    zeros = jax.tree.map(np.zeros_like, params)
    actual, _ = optimized(config, lambda step: 0.5, params, [zeros], np.float32)
    expected = jax.tree.map(lambda w, g: w - 0.5 * g, params, jax.grad(l2)(params))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6), actual, expected)


def test_decay_mask_leaves_out_norms_and_biases():
    assert decay_mask(jax.tree.map(np.zeros, SHAPES, **IS_SHAPE)) == MASK
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), SHAPES, **IS_SHAPE)
    assert decay_mask(shapes) == MASK
    assert decay_mask({"bias_in": 0, "kernel_in": 0, "biased": 0}) == {
        "bias_in": False,
        "kernel_in": True,
        "biased": True,
    }


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_state_tells_which_arrays_follow_the_parameters(name):
    optimizer = make_optimizer(config_for(name), lambda step: 0.1, MASK)
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), SHAPES, **IS_SHAPE)
    names = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), shapes)
    state = jax.eval_shape(optimizer.init, shapes)
    placed = optax.tree.map_params(
        optimizer, lambda _, name: name, state, names, transform_non_params=lambda _: "scalar"
    )
    assert placed == momentum.MomentumState("scalar", names)


def test_an_unknown_name_is_told():
    with pytest.raises(
        UserError,
        match="no optimizer 'adagrad'; use one of adam, adamw, lamb, lars, lazy_adam, rmsprop, sgd, torch_sgd",
    ):
        make_optimizer(config_for("adagrad"), lambda step: 0.1, MASK)


def descended(config, schedule, start, gradients, mask=None):
    """The parameters after all gradients, in float64, by default without decay's mask, and the rate of each step."""
    with jax.enable_x64(True):
        optimizer = make_optimizer(config, schedule, mask)
        params = jax.tree.map(jnp.asarray, start)
        state = optimizer.init(params)
        for grads in gradients:
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, [float(schedule(step)) for step in range(len(gradients))]


def few_parameters():
    random = np.random.default_rng(0)
    start = {"kernel": random.normal(size=(4, 3)), "bias": random.normal(size=3)}
    return start, [{name: random.normal(size=w.shape) for name, w in start.items()} for _ in range(STEPS)]


@pytest.mark.parametrize("nesterov", [False, True])
def test_torch_sgd_equals_numpys(nesterov):
    start, gradients = few_parameters()
    config = config_for("torch_sgd", nesterov=nesterov)
    params, rates = descended(config, polynomial_with_warmup(0.5, 5, 20), start, gradients)
    for name, w in start.items():
        m = np.zeros_like(w)
        for rate, grads in zip(rates, gradients, strict=True):
            d = grads[name] + 1e-2 * w
            m = 0.9 * m + d
            w = w - rate * (0.9 * m + d if nesterov else m)
        np.testing.assert_allclose(params[name], w, rtol=1e-12, atol=1e-12)


def test_biases_have_a_rate_and_a_decay_of_their_own():
    """PyTorch's groups of parameters, as Mask R-CNN's reference makes them: twice the rate and no decay."""
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    start, gradients = few_parameters()
    config, decays = config_for("torch_sgd", bias_rate=2.0, bias_decay=0.0), decay_mask(start)
    params, rates = descended(config, polynomial_with_warmup(0.5, 5, 20), start, gradients, decays)
    assert len(set(decays.values())) == 2
    theirs = {name: torch.nn.Parameter(torch.tensor(w)) for name, w in start.items()}
    groups = [
        {"params": [w for name, w in theirs.items() if decays[name] == kind], "weight_decay": 1e-2 * kind}
        for kind in (True, False)
    ]
    judge = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    for rate, grads in zip(rates, gradients, strict=True):
        for group, times in zip(judge.param_groups, (1, 2), strict=True):
            group["lr"] = times * rate
        for name, w in theirs.items():
            w.grad = torch.tensor(grads[name])
        judge.step()
    for name, w in theirs.items():
        np.testing.assert_allclose(params[name], w.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_torch_sgd_is_pytorchs(nesterov):
    """PyTorch's own, where it is there, with a rate that changes at every step."""
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    start, gradients = few_parameters()
    config = config_for("torch_sgd", nesterov=nesterov)
    params, rates = descended(config, polynomial_with_warmup(0.5, 5, 20), start, gradients)
    theirs = {name: torch.nn.Parameter(torch.tensor(w)) for name, w in start.items()}
    judge = torch.optim.SGD(theirs.values(), lr=1.0, momentum=0.9, weight_decay=1e-2, nesterov=nesterov)
    for rate, grads in zip(rates, gradients, strict=True):
        judge.param_groups[0]["lr"] = rate
        for name, w in theirs.items():
            w.grad = torch.tensor(grads[name])
        judge.step()
    for name, w in theirs.items():
        np.testing.assert_allclose(params[name], w.detach().numpy(), rtol=1e-12, atol=1e-12)
