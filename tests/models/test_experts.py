"""Experts: grouped products and routing against plain loops, in float64 and with gradients; split over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.layout import use as use_layout
from mlperf_jax.parallel.mesh import make_layout, single_device_layout
from mlperf_jax.precision import POLICIES
from models import grouped_product
from models.experts import Experts

WIDTH, MLP, EXPERTS, CHOSEN = 8, 6, 4, 2


@functools.cache
def compiled(form):
    """The product and its gradients, in the form of CPUs, of TPUs and GPUs (interpreted) or of everywhere."""
    product = {
        "tpu": functools.partial(grouped_product.by_megablox, interpret=True),
        "gpu": functools.partial(grouped_product._by_blocks, grouped_product.triton(interpret=True)),
    }.get(form, grouped_product.grouped_product)

    def run(rows, kernels, looked_at, sizes):
        def total(rows, kernels):
            y = product(rows, kernels, sizes)
            y = jnp.where((jnp.arange(len(rows)) < sizes.sum())[:, None], y, 0)
            return (y * looked_at).sum(), y

        return jax.grad(total, (0, 1), has_aux=True)(rows, kernels)

    def traced(*args):
        with use_layout(single_device_layout() if form == "cpu" else None):
            return run(*args)

    return jax.jit(traced)


@pytest.mark.parametrize("form", ["cpu", "tpu", "gpu", ""])
@pytest.mark.parametrize(
    "sizes", [(70, 0, 129, 1), (0, 0, 0, 0), (64, 64, 64, 8), (0, 200, 0, 0), (5, 6, 7, 0)]
)
def test_each_group_has_its_own_kernel(sizes, form):
    random = np.random.default_rng(sum(sizes))
    rows, kernels = random.normal(size=(200, 5)), random.normal(size=(4, 5, 3))
    used, looked_at = sum(sizes), random.normal(size=(200, 3))
    looked_at[used:] = 0  # what comes after the last group means nothing
    dtype, close = (np.float32, 1e-4) if form == "tpu" else (np.float64, 1e-11)  # all that the kernel takes
    with jax.enable_x64(form != "tpu"):
        floats = (x.astype(dtype) for x in (rows, kernels, looked_at))
        found = jax.device_get(compiled(form)(*floats, np.array(sizes, np.int32)))
    (of_rows, of_kernels), y = found
    group = np.repeat(np.arange(4), sizes)
    expected = np.einsum("ni,nio->no", rows[:used], kernels[group])
    np.testing.assert_allclose(y[:used], expected, atol=close)
    np.testing.assert_allclose(
        of_rows[:used], np.einsum("no,nio->ni", looked_at[:used], kernels[group]), atol=close
    )
    np.testing.assert_array_equal(of_rows[used:], 0)
    for n in range(4):
        mine = np.flatnonzero(group == n)
        np.testing.assert_allclose(of_kernels[n], rows[mine].T @ looked_at[mine], atol=close)


def test_gpus_tiles_need_not_fill_what_they_lie_in():
    """More inputs and outputs than a program of the kernel computes, in no whole number of its tiles."""
    random = np.random.default_rng(7)
    sizes = np.array([150, 0, 3, 130], np.int32)
    rows, kernels = random.normal(size=(300, 150)), random.normal(size=(4, 150, 200))
    looked_at = random.normal(size=(300, 200))
    with jax.enable_x64(True):
        (of_rows, of_kernels), y = compiled("gpu")(rows, kernels, looked_at, sizes)
    group = np.repeat(np.arange(4), sizes)
    used = len(group)
    np.testing.assert_allclose(y[:used], np.einsum("ni,nio->no", rows[:used], kernels[group]), atol=1e-10)
    back = np.einsum("no,nio->ni", looked_at[:used], kernels[group])
    np.testing.assert_allclose(of_rows[:used], back, atol=1e-10)
    for n in range(4):
        mine = np.flatnonzero(group == n)
        np.testing.assert_allclose(of_kernels[n], rows[mine].T @ looked_at[mine], atol=1e-10)


def test_on_cpus_rows_are_multiplied_by_their_own_kernel_alone():
    """Every product is of one block and one kernel, and there are as many as blocks that hold rows."""
    rows, kernels = np.ones((1024, 16), np.float32), np.ones((8, 16, 32), np.float32)
    sizes = np.array([500, 1, 0, 0, 300, 0, 23, 200], np.int32)
    with use_layout(single_device_layout()):
        text = str(jax.make_jaxpr(grouped_product.grouped_product)(rows, kernels, sizes))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 1 and f"f32[{grouped_product.BLOCK},32]" in products[0]
    assert grouped_product._blocks(1024, jnp.array(sizes), grouped_product.BLOCK).used == 8 + 1 + 5 + 1 + 4


@functools.cache
def graph_and_parameters():
    model = nnx.eval_shape(
        lambda: Experts(
            WIDTH, MLP, EXPERTS, CHOSEN, deviation=1.0, deviation_out=1.0, policy=POLICIES["float64"],
            rngs=nnx.Rngs(0),
        )
    )  # fmt: skip
    graph, params = nnx.split(model, nnx.Param)
    random = np.random.default_rng(3)
    return graph, jax.tree.map(lambda x: random.normal(size=x.shape), nnx.to_pure_dict(params))


def looped(params, x):
    """Every expert of every token, of which those that are not chosen weigh nothing."""
    logits = x @ params["router"]
    least = jnp.sort(logits, -1)[..., -CHOSEN, None]
    weights = jax.nn.softmax(jnp.where(logits >= least, logits, -jnp.inf))
    each = [
        (jax.nn.silu(x @ params["gate"][e]) * (x @ params["up"][e])) @ params["down"][e]
        for e in range(EXPERTS)
    ]
    return (jnp.stack(each, -1) * weights[..., None, :]).sum(-1), (weights > 0).sum(1)


def differentiated(function):
    def run(params, x):
        y, load = function(params, x)
        return jnp.tanh(y).sum(), (y, load)

    return jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))


def ours(params, x):
    return nnx.merge(graph_and_parameters()[0], params)(x)


@functools.cache
def expected():
    with jax.enable_x64(True):
        params = graph_and_parameters()[1]
        x = np.random.default_rng(5).normal(size=(4, 10, WIDTH))
        return params, x, jax.device_get(differentiated(looped)(params, x))


def test_tokens_go_through_the_experts_that_they_chose():
    params, x, wanted = expected()
    with jax.enable_x64(True), use_layout(single_device_layout()):
        found = jax.device_get(differentiated(ours)(params, x))
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)
    load = found[0][1][1]
    assert (load.sum(1) == 10 * CHOSEN).all() and load.max() > load.min()


@pytest.mark.parametrize(
    "strategy, mesh",
    [
        ("fsdp", {"data": 4}),
        ("fsdp_tp", {"data": 2, "model": 2}),
        ("expert", {"data": 2, "expert": 2}),
        ("expert", {"data": 1, "expert": 4}),
        ("context", {"data": 2, "context": 2}),
    ],
)
def test_layouts_agree_with_one_device(strategy, mesh):
    params, x, wanted = expected()
    graph, _ = graph_and_parameters()
    with jax.enable_x64(True):
        layout = make_layout(STRATEGIES[strategy], mesh, jax.devices()[:4])
        axes = {
            path[-1]: variable.get_metadata()["axes"]
            for path, variable in nnx.to_flat_state(
                nnx.split(nnx.eval_shape(lambda: nnx.merge(graph, params)))[1]
            )
        }
        placed = {n: jax.device_put(p, layout.param_sharding(p.shape, axes[n])) for n, p in params.items()}
        with use_layout(layout):
            x = jax.device_put(x, layout.sharding(x.shape, ("batch", "position")))
            found = jax.device_get(differentiated(lambda params, x: ours(params, x))(placed, x))
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)
    if strategy == "expert":
        assert placed["gate"].addressable_shards[0].data.shape[0] == EXPERTS // mesh["expert"]
