"""Look-ups and updates on eight devices against NumPy on whole tables, for every way to lay them out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.embedding import exchange, sharded
from mlperf_jax.embedding.tables import Tables
from mlperf_jax.errors import UserError
from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel import mesh
from mlperf_jax.parallel.layout import STRATEGIES, Strategy
from mlperf_jax.training import sparse_optimizers

TABLES = Tables((40, 3, 17, 90, 1, 25), (1, 2, 1, 5, 1, 3), width=8, stripes=8)
BY_GROUPS = dataclasses.replace(TABLES, groups=8)
BATCH = 16

_both = {"data": -1, "model": 2}
_batch = {"batch": (("data", "model"),)}
USERS = {
    "tables over model": Strategy("a", _both, {"batch": ("data",), "table": ("model",)}),
    "columns over model": Strategy("b", _both, {"batch": ("data",), "table_column": ("model",)}),
    "rows over data, columns over model": Strategy(
        "c", _both, {"batch": ("data",), "table_row": ("data",), "table_column": ("model",)}
    ),
    "rows over data, tables over model": Strategy(
        "f", _both, {"batch": ("data",), "table_row": ("data",), "table": ("model",)}
    ),
    "tables over data, rows over model": Strategy(
        "d", _both, {"batch": ("data",), "table": ("data",), "table_row": ("model",)}
    ),
    "tables over data, columns over model": Strategy(
        "e", _both, {"batch": ("data",), "table": ("data",), "table_column": ("model",)}
    ),
    # The batch over both.
    "rows over both": Strategy("g", _both, _batch | {"table_row": (("data", "model"),)}),
    "columns over both": Strategy("h", _both, _batch | {"table_column": (("data", "model"),)}),
    "tables over both": Strategy("i", _both, _batch | {"table": (("data", "model"),)}),
    "rows over one of them": Strategy("j", _both, _batch | {"table_row": ("model",)}),
    "rows by size": Strategy("k", _both, _batch, shard_params="model"),
    "columns over one, tables over the other": Strategy(
        "l", _both, _batch | {"table_column": ("data",), "table": ("model",)}
    ),
    "rows over both, the other way": Strategy("m", _both, _batch | {"table_row": (("model", "data"),)}),
}
NAMED = ["dp", "zero1", "fsdp", "tp", "fsdp_tp", "spatial", "row_wise", "column_wise", "table_wise"]
LAYOUTS = [STRATEGIES[name] for name in NAMED] + list(USERS.values())


def batch(seed):
    random = np.random.default_rng(seed)
    arrays = [random.normal(size=(size, TABLES.width)) for size in TABLES.sizes]
    rows = random.integers(np.array(TABLES.sizes)[TABLES.table_of], size=(BATCH, TABLES.look_ups))
    rows[:, 3] = rows[0, 3]  # everyone looks up one row
    grads = random.normal(size=(BATCH, TABLES.num_tables, TABLES.width))
    return arrays, rows.astype(np.int32), grads


def pooled_by_hand(arrays, rows):
    out = np.zeros((len(rows), TABLES.num_tables, TABLES.width))
    for example, row in enumerate(rows):
        for look_up, table in enumerate(TABLES.table_of):
            out[example, table] += arrays[table][row[look_up]]
    return out


def adagrad_by_hand(arrays, totals, rows, grads, lr, epsilon):
    """With the dense gradient that the code under test never makes."""
    dense = [np.zeros_like(array) for array in arrays]
    for example, row in enumerate(rows):
        for look_up, table in enumerate(TABLES.table_of):
            dense[table][row[look_up]] += grads[example, table]
    totals = [t + g**2 for t, g in zip(totals, dense, strict=True)]
    new = [w - lr * g / (np.sqrt(t) + epsilon) for w, g, t in zip(arrays, dense, totals, strict=True)]
    return new, totals, dense


def on_devices(layout, tables, arrays, rows, grads):
    """Pooled vectors, and the tables after two updates."""
    rule = sparse_optimizers.adagrad(epsilon=1e-8, initial_accumulator=0.1)

    def step(stack, slots, places, grads):
        pooled = sharded.look_up(stack, places, tables, stack.dtype)
        return pooled, *sharded.update(rule, stack, slots, places, grads, tables, jnp.asarray(0.5))

    stack = tables.stacked(arrays, np.float64)
    place = sharded.stack_sharding(tables, layout)
    stack = jax.device_put(stack, place)
    slots = jax.device_put(rule.init(stack), place)
    places = jax.device_put(np.asarray(tables.places(rows)), layout.sharding((BATCH,), ("batch",)))
    grads = jax.device_put(grads, layout.sharding(grads.shape, ("batch", None, None)))
    with layouts.use(layout):
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(stack, slots, places, grads).compile()
    first, stack, slots = compiled(stack, slots, places, grads)
    second, stack, slots = compiled(stack, slots, places, grads)
    copies = {}
    for shard in stack.addressable_shards:
        copies.setdefault(str(shard.index), []).append(np.asarray(shard.data))
    for same in copies.values():
        assert all(np.array_equal(same[0], other) for other in same)
    return first, second, stack, slots[0]


@pytest.mark.parametrize("strategy", LAYOUTS, ids=[*NAMED, *USERS])
def test_every_layout_equals_numpy(strategy, monkeypatch):
    if strategy.name in ("row_wise", "a", "g"):  # also in several parts, chunks and rounds
        monkeypatch.setattr(exchange, "DEVIATIONS", -100)
        monkeypatch.setattr(sharded, "LOOK_UPS_AT_ONCE", 8 * TABLES.look_ups)
        monkeypatch.setattr(
            sharded, "update_rows", lambda *a, **k: sparse_optimizers.update_rows(*a, **k, chunk=7)
        )
    tables = BY_GROUPS if "table" in strategy.rules else TABLES
    with jax.enable_x64(True):
        layout = mesh.make_layout(strategy)
        arrays, rows, grads = batch(len(strategy.name))
        first, second, stack, slot = on_devices(layout, tables, arrays, rows, grads)
        np.testing.assert_allclose(first, pooled_by_hand(arrays, rows), rtol=1e-12, atol=1e-12)
        totals = [np.full_like(array, 0.1) for array in arrays]
        once, totals, dense = adagrad_by_hand(arrays, totals, rows, grads, 0.5, 1e-8)
        np.testing.assert_allclose(second, pooled_by_hand(once, rows), rtol=1e-12, atol=1e-12)
        twice, totals, _ = adagrad_by_hand(once, totals, rows, grads, 0.5, 1e-8)
        held = zip(arrays, tables.unstacked(stack), tables.unstacked(slot), twice, totals, dense, strict=True)
        for before, found, total, expected, expected_total, gradient in held:
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(total, expected_total, rtol=1e-10)
            untouched = ~gradient.any(axis=1)
            np.testing.assert_array_equal(found[untouched], before[untouched])


@pytest.mark.parametrize("devices", [1, 2])
def test_the_example_of_update(devices):
    """Two tables of four rows in a stack of eight: what its docstring says, on one device and on two."""
    tables = Tables((4, 4), (1, 2), width=2, stripes=1)
    places = np.asarray(tables.places(jnp.asarray([[3, 1, 1], [3, 2, 0]], jnp.int32)))
    np.testing.assert_array_equal(places, [[3, 5, 5], [3, 6, 4]])
    g = np.random.default_rng(0).normal(size=(2, 2, 2)).astype(np.float32)
    change = np.zeros((8, 2), np.float32)
    change[3], change[5] = g[0, 0] + g[1, 0], 2 * g[0, 1]
    change[6] = change[4] = g[1, 1]
    layout = mesh.make_layout(STRATEGIES["row_wise"], devices=jax.devices()[:devices])
    with layouts.use(layout):
        stack, slots = jax.jit(
            lambda *a: sharded.update(sparse_optimizers.sgd(), a[0], (), *a[1:], tables, jnp.float32(1))
        )(np.zeros((1, 8, 2), np.float32), places, g)
    assert slots == ()
    np.testing.assert_allclose(stack[0], -change, rtol=1e-6)


@pytest.mark.parametrize("name", ["dp", "row_wise", "column_wise", "table_wise"])
def test_many_gradients_in_bfloat16_are_summed_in_the_tables_dtype(name):
    """1,024 a device for the one row of a table: sums in bfloat16 end at 256 times what they add.

    Sums that travel are rounded once, to the dtype that gradients travel in.
    """
    tables = Tables((1, 40), (64, 1), width=16, groups=8 if name == "table_wise" else 1, stripes=8)
    layout = mesh.make_layout(STRATEGIES[name])
    random = np.random.default_rng(0)
    rows = np.concatenate([np.zeros((128, 64)), random.integers(40, size=(128, 1))], 1).astype(np.int32)
    grads = jnp.asarray(random.normal(1, 0.3, (128, 2, 16)), jnp.bfloat16)
    stack = jax.device_put(np.zeros(tables.shape, np.float32), sharded.stack_sharding(tables, layout))
    with layouts.use(layout):
        stack, _ = jax.jit(
            lambda *a: sharded.update(sparse_optimizers.sgd(), a[0], (), *a[1:], tables, jnp.float32(1))
        )(stack, tables.places(rows), grads)
    expected = 64 * np.asarray(grads[:, 0], np.float64).sum(0)
    rtol = 2**-9 if name == "row_wise" else 1e-5
    np.testing.assert_allclose(-tables.unstacked(stack)[0][0], expected, rtol=rtol)


@pytest.mark.parametrize("platform", ["tpu", "cpu"])
def test_sums_of_look_ups_are_the_same_in_the_form_of_each_platform(platform, monkeypatch):
    """Against a loop; rows that the table does not have are zeros."""
    monkeypatch.setattr(sharded, "compiled_for", lambda: platform)
    random = np.random.default_rng(1)
    table = random.normal(size=(30, TABLES.width)).astype(np.float32)
    rows = random.integers(40, size=(BATCH, TABLES.look_ups)).astype(np.int32)
    expected = np.zeros((BATCH, TABLES.num_tables, TABLES.width))
    for example, look_ups in enumerate(rows):
        for look_up, of in enumerate(TABLES.table_of):
            if look_ups[look_up] < len(table):
                expected[example, of] += table[look_ups[look_up]]
    found = sharded._pooled(jnp.asarray(table), jnp.asarray(rows), TABLES)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_tables_lie_where_the_strategy_says():
    expected = {
        "dp": (None, None, None),
        "zero1": (None, None, None),
        "fsdp": (None, "data", None),
        "tp": (None, "model", None),
        "fsdp_tp": (None, "model", "data"),
        "row_wise": (None, "data", None),
        "column_wise": (None, None, "data"),
        "table_wise": ("data", None, None),
    }
    wide = dataclasses.replace(TABLES, width=64)
    for name, axes in expected.items():
        tables = dataclasses.replace(wide, groups=8) if name == "table_wise" else wide
        spec = sharded.stack_sharding(tables, mesh.make_layout(STRATEGIES[name])).spec
        assert (*spec, None, None, None)[:3] == axes, name


def test_the_cast_rounds_as_any_other():
    """To nearest, ties to even; nothing is too small, and infinities and nan stay."""
    bits = np.random.default_rng(0).integers(2**32, size=2000, dtype=np.uint32)
    bits[:500] = bits[:500] & 0xFFFF0000 | 0x8000  # ties
    values = np.append(bits.view(np.float32), np.float32([0, -0.0, np.inf, -np.inf, 3.4e38, 1e-45]))
    values = values[~np.isnan(values)]
    with np.errstate(over="ignore"):
        expected = values.astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(sharded._cast(values, jnp.bfloat16)), expected)
    assert np.isnan(np.asarray(sharded._cast(np.float32([np.nan]), jnp.bfloat16), np.float32)).all()


def test_groups_that_do_not_divide_name_the_mend():
    with pytest.raises(UserError, match=r"table_groups must be a multiple of 8, not 1"):
        sharded.stack_sharding(TABLES, mesh.make_layout(STRATEGIES["table_wise"]))


def test_no_dense_gradient_and_no_copy_of_the_table():
    """Compiled for eight devices: what a step needs besides its arguments is small against the table."""
    tables = Tables((400_000, 100_000), (1, 2), width=32, stripes=8)
    layout = mesh.make_layout(STRATEGIES["row_wise"])
    rule = sparse_optimizers.adagrad(epsilon=1e-8)

    def step(stack, slots, places):
        grads = jnp.sin(sharded.look_up(stack, places, tables, stack.dtype))
        return sharded.update(rule, stack, slots, places, grads, tables, jnp.float32(0.1))

    place = sharded.stack_sharding(tables, layout)
    stack = jax.ShapeDtypeStruct(tables.shape, jnp.float32, sharding=place)
    places = layout.struct((64, 3), jnp.int32, ("batch",))
    with layouts.use(layout):
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(stack, (stack,), places).compile()
    memory = compiled.memory_analysis()
    shard = 4 * np.prod(tables.shape) // 8
    assert memory.alias_size_in_bytes >= 2 * shard
    assert memory.temp_size_in_bytes < 0.1 * shard
