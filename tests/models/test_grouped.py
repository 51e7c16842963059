"""Forms of a grouped convolution against lax's own on one device, values and gradients; and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mlperf_jax.parallel import layout
from mlperf_jax.parallel.mesh import make_layout, single_device_layout
from models import depthwise
from models import grouped as module
from models.grouped import convolve_groups, dense, grouped, in_parts, shifted


def judge(x, kernel, stride, padding, groups):
    space = "DHW"[-(x.ndim - 2) :]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    return lax.conv_general_dilated(
        x, kernel, stride, padding, dimension_numbers=numbers, feature_group_count=groups
    )


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.sampled_from([(1, 1), (3, 3), (5, 3)]),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["SAME", ((1, 1), (1, 1)), ((2, 0), (1, 3))]),
    channels=st.sampled_from([(4, 4, 4), (4, 4, 8), (2, 4, 6), (3, 6, 3)]),
    form=st.sampled_from([shifted, dense]),
    seed=st.integers(0, 99),
)
def test_it_is_the_grouped_convolution(size, window, stride, padding, channels, form, seed):
    if not isinstance(padding, str):
        padded = [n + sum(pads) for n, pads in zip(size, padding, strict=True)]
        if any(n < w for n, w in zip(padded, window, strict=True)):
            return
    agrees(form, 2, size, window, stride, padding, channels, seed)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 6),
    bytes_of_part=st.sampled_from([1, 500, 10_000]),
    size=st.lists(st.integers(3, 9), min_size=1, max_size=3),
    window=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.sampled_from(["SAME", "VALID", (1, 1), (4, 0), (0, 3)]),
    seed=st.integers(0, 99),
)
def test_gradients_in_parts_are_those_of_all_images(
    batch, bytes_of_part, size, window, stride, padding, seed
):
    dims = len(size)
    padding = padding if isinstance(padding, str) else (padding,) * dims
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depthwise, "_PART_BYTES", bytes_of_part)
        agrees(in_parts, batch, size, (window,) * dims, (stride,) * dims, padding, (3, 3, 3), seed)


def agrees(form, batch, size, window, stride, padding, channels, seed):
    """Values and gradients are those of lax's own form."""
    groups, inputs, outputs = channels
    random = np.random.default_rng(seed)
    with jax.enable_x64(True):
        x = jnp.asarray(random.normal(size=(batch, *size, inputs)))
        kernel = jnp.asarray(random.normal(size=(*window, inputs // groups, outputs)))
        found, pull = jax.vjp(lambda *a: form(*a, stride, padding, groups), x, kernel)
        expected, judged = jax.vjp(lambda *a: judge(*a, stride, padding, groups), x, kernel)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        weights = jnp.asarray(random.normal(size=expected.shape))
        for a, b in zip(pull(weights), judged(weights), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_volumes_have_one_dimension_more():
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(2, 5, 4, 6, 3)), random.normal(size=(3, 3, 3, 1, 3))
    arguments = (x, kernel, (2, 1, 1), "SAME", 3)
    for form in (convolve_groups, dense, grouped):
        np.testing.assert_allclose(form(*arguments), judge(*arguments), rtol=1e-5, atol=1e-5)


AUTO = (jax.sharding.AxisType.Auto,)
ROWS, CHANNELS = P(None, "a"), P(None, None, None, "a")


@pytest.mark.parametrize("form", [shifted, dense])
@pytest.mark.parametrize("split", [(P("a"), P()), (P("a", None, None, "b"), P(None, None, None, "b"))])
@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(8, 8, 8), (2, 8, 8), (4, 8, 16)])
def test_a_mesh_of_two_axes_gives_the_numbers_of_one_device(groups, inputs, outputs, split, form):
    compare(jax.make_mesh((4, 2), ("a", "b"), axis_types=AUTO * 2), form, groups, inputs, outputs, split)


@pytest.mark.parametrize("split", [(P("a"), P()), (P("a"), CHANNELS), (ROWS, P()), (CHANNELS, CHANNELS)])
@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(8, 8, 8), (8, 16, 32)])
def test_a_mesh_of_one_axis_gives_them_to_xlas_own_form_too(groups, inputs, outputs, split):
    """Where `convolve_groups` takes it on TPUs and GPUs; the partitioner is the same."""
    compare(jax.make_mesh((8,), ("a",), axis_types=AUTO), grouped, groups, inputs, outputs, split)


@pytest.mark.parametrize("strategy", ["dp", "fsdp", "tp", "fsdp_tp"])
@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(8, 8, 8), (2, 8, 8), (8, 16, 32)])
def test_xlas_own_form_of_each_devices_rows_gives_them_in_a_layout(groups, inputs, outputs, strategy):
    """And no device asks another for its rows."""
    in_use = make_layout(layout.STRATEGIES[strategy])
    axes = ("batch", None, None, "channels"), ("window", "window", "conv_in", "conv_out")
    shapes = (8, 8, 5, inputs), (3, 3, inputs // groups, outputs)
    split = in_use.spec(shapes[0], axes[0]), in_use.param_sharding(shapes[1], axes[1]).spec
    with layout.use(in_use):
        text = compare(in_use.mesh, grouped, groups, inputs, outputs, split)
    assert strategy != "dp" or "all-gather" not in text


def compare(mesh, form, groups, inputs, outputs, split):
    random = np.random.default_rng(1)
    with jax.enable_x64(True):
        x = random.normal(size=(8, 8, 5, inputs))
        kernel = random.normal(size=(3, 3, inputs // groups, outputs))

        def loss(form):
            return lambda x, kernel: jnp.square(form(x, kernel, (1, 1), "SAME", groups)).sum()

        expected = jax.jit(jax.value_and_grad(loss(judge), (0, 1)))(jnp.asarray(x), jnp.asarray(kernel))
        placed = [
            jax.device_put(array, NamedSharding(mesh, spec))
            for array, spec in zip((x, kernel), split, strict=True)
        ]
        compiled = jax.jit(jax.value_and_grad(loss(form), (0, 1))).lower(*placed).compile()
        found = compiled(*placed)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-11), found, expected)
        return compiled.as_text()


@pytest.mark.parametrize(
    ("platform", "strategy", "inputs", "groups", "expected"),
    [
        ("cpu", "dp", 64, 64, shifted),
        ("cpu", "tp", 64, 8, dense),
        ("cpu", "dp", 512, 32, shifted),
        ("tpu", "tp", 128, 128, dense),
        ("tpu", "dp", 256, 256, grouped),
        ("tpu", "dp", 512, 32, grouped),
        ("tpu", "dp", 256, 32, dense),
        ("tpu", "dp", 480, 3, dense),
        ("tpu", "tp", 512, 512, grouped),
        ("tpu", "spatial", 512, 512, dense),
        ("gpu", "dp", 64, 64, shifted),
        ("gpu", "dp", 64, 8, grouped),
        ("gpu", "fsdp_tp", 64, 8, grouped),
        ("gpu", "spatial", 64, 8, dense),
    ],
)
def test_the_form_by_platform_and_layout(platform, strategy, inputs, groups, expected, monkeypatch):
    monkeypatch.setattr(module, "compiled_for", lambda: platform)
    with layout.use(make_layout(layout.STRATEGIES[strategy])):
        assert module._form(inputs, inputs, groups) is expected


@pytest.mark.parametrize(
    ("platform", "groups", "expected"), [("cpu", 64, in_parts), ("gpu", 64, shifted), ("cpu", 8, dense)]
)
def test_the_form_on_one_device(platform, groups, expected, monkeypatch):
    monkeypatch.setattr(module, "compiled_for", lambda: platform)
    with layout.use(single_device_layout()):
        assert module._form(64, 64, groups) is expected
