"""The resolver against its documented rules, and every strategy against one device."""

import functools
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from mlperf_jax.errors import UserError
from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.layout import MIN_SHARDED_SIZE, STRATEGIES, Layout, Strategy
from mlperf_jax.parallel.mesh import make_layout, single_device_layout
from mlperf_jax.training.engine import Engine
from tests import toys

STEPS = 10


# The resolver.


def layout_of(mesh, rules, **sharded):
    """A layout on a mesh without devices: the resolver needs only sizes."""
    mesh_ = jax.sharding.AbstractMesh(tuple(mesh.values()), tuple(mesh))
    return Layout(Strategy("test", mesh, rules, **sharded), mesh_)


def by_the_rules(mesh, rules, shape, axes, also):
    """The two rules of layout.py's docstring, one sentence at a time."""
    taken, result = [], [None] * len(shape)
    for d, (size, logical) in enumerate(zip(shape, axes, strict=True)):
        for choice in rules.get(logical, ()):
            carrying = [a for a in ([choice] if isinstance(choice, str) else choice) if mesh[a] > 1]
            free = carrying and not set(carrying) & set(taken)
            if free and size % math.prod(mesh[a] for a in carrying) == 0:
                result[d] = carrying[0] if len(carrying) == 1 else tuple(carrying)
                taken += carrying
                break
    large = len(shape) > 1 and math.prod(shape) >= MIN_SHARDED_SIZE
    if also and mesh[also] > 1 and also not in taken and large:
        largest = sorted(range(len(shape)), key=lambda d: (-shape[d], d))
        whole = [d for d in largest if result[d] is None and shape[d] % mesh[also] == 0]
        if whole:
            result[whole[0]] = also
    return result


MESH_AXES = ("data", "model", "expert")
LOGICAL = ("batch", "embed", "conv_out", "vocab")
CHOICES = st.one_of(
    st.sampled_from(MESH_AXES), st.lists(st.sampled_from(MESH_AXES), min_size=1, unique=True).map(tuple)
)


@given(
    mesh=st.fixed_dictionaries({axis: st.sampled_from([1, 2, 3, 4, 8]) for axis in MESH_AXES}),
    rules=st.dictionaries(st.sampled_from(LOGICAL), st.lists(CHOICES, max_size=3).map(tuple)),
    dims=st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 6, 8, 12, 16, 64]), st.sampled_from((*LOGICAL, "unknown", None))),
        max_size=5,
    ),
    also=st.sampled_from((None, *MESH_AXES)),
)
@settings(max_examples=200, deadline=None)
def test_resolver_does_what_its_rules_say(mesh, rules, dims, also):
    shape, axes = tuple(size for size, _ in dims), tuple(name for _, name in dims)
    spec = layout_of(mesh, rules).spec(shape, axes, also=also)
    padded = [*spec, *[None] * (len(shape) - len(spec))]
    assert padded == by_the_rules(mesh, rules, shape, axes, also)
    used = [axis for axes in spec for axis in layouts.together(axes)]
    assert len(used) == len(set(used))
    parts = [math.prod(mesh[axis] for axis in layouts.together(axes)) for axes in padded]
    assert all(size % n == 0 for size, n in zip(shape, parts, strict=True))


@pytest.mark.parametrize(
    ("name", "mesh", "shape", "axes", "param", "optimizer"),
    [
        # Worked out by hand: a 3x3 convolution 64 -> 128, and ResNet-50's classifier.
        ("dp", {"data": 8}, (3, 3, 64, 128), (None, None, "conv_in", "conv_out"), P(), P()),
        (
            "zero1",
            {"data": 8},
            (3, 3, 64, 128),
            (None, None, "conv_in", "conv_out"),
            P(),
            P(*[None] * 3, "data"),
        ),
        (
            "fsdp",
            {"data": 8},
            (3, 3, 64, 128),
            (None, None, "conv_in", "conv_out"),
            P(*[None] * 3, "data"),
            P(*[None] * 3, "data"),
        ),
        (
            "tp",
            {"data": 4, "model": 2},
            (3, 3, 64, 128),
            (None, None, "conv_in", "conv_out"),
            P(*[None] * 3, "model"),
            P(*[None] * 3, "model"),
        ),
        (
            "fsdp_tp",
            {"data": 4, "model": 2},
            (3, 3, 64, 128),
            (None, None, "conv_in", "conv_out"),
            P(None, None, "data", "model"),
            P(None, None, "data", "model"),
        ),
        # 1001 classes divide over nothing: the other dimension is split where a strategy splits by size.
        ("tp", {"data": 4, "model": 2}, (2048, 1001), ("embed", "vocab"), P(), P()),
        ("fsdp", {"data": 8}, (2048, 1001), ("embed", "vocab"), P("data"), P("data")),
        # Below the least size, and a scalar.
        ("fsdp", {"data": 8}, (512,), ("channels",), P(), P()),
        ("fsdp_tp", {"data": 4, "model": 2}, (512,), ("channels",), P("model"), P("model")),
        ("zero1", {"data": 8}, (), (), P(), P()),
    ],
)
def test_strategies_place_known_tensors(name, mesh, shape, axes, param, optimizer):
    layout = Layout(STRATEGIES[name], jax.sharding.AbstractMesh(tuple(mesh.values()), tuple(mesh)))
    assert layout.param_sharding(shape, axes).spec == param
    assert layout.optimizer_sharding(shape, axes).spec == optimizer


def test_rows_without_division_name_the_mend():
    layout = make_layout(STRATEGIES["dp"])
    assert layout.rows(32) == slice(0, 32)
    with pytest.raises(UserError, match=r"batch of 30 .* 8 devices .*'data'.* --config.batch_size=32"):
        layout.rows(30)


@pytest.mark.parametrize(
    ("rule", "size", "spec"),
    [
        ((("data", "fsdp"),), 16, P(("data", "fsdp"))),
        ((("fsdp", "data"),), 16, P(("fsdp", "data"))),
        ((("data", "fsdp"),), 12, P()),  # as one choice: all or nothing
        ((("data", "fsdp"), "fsdp"), 12, P("fsdp")),
        (("data", "fsdp"), 16, P("data")),  # the first that is free and divides
        (("data", "fsdp"), 7, P()),
    ],
)
def test_axes_together_and_axes_to_choose_from(rule, size, spec):
    layout = layout_of({"data": 2, "fsdp": 4, "model": 1}, {"batch": rule, "width": ("fsdp",)})
    assert layout.spec((size, 3), ("batch", None)) == spec
    taken = "fsdp" in str(spec)  # by the batch, where it comes first
    assert layout.spec((size, 8), ("batch", "width")) == (spec if taken else P(*(spec or [None]), "fsdp"))
    # Before it: a choice of which an axis is taken is none.
    other = P("fsdp", "data") if rule == ("data", "fsdp") and size == 16 else P("fsdp")
    assert layout.spec((8, size), ("width", "batch")) == other


def test_of_a_height_a_device_holds_two_rows_or_all():
    """With a row a device XLA's partitioner multiplies gradients of convolutions."""
    layout = layout_of({"data": 2, "space": 4}, STRATEGIES["spatial"].rules)
    axes = ("batch", "height", "width", "channels")
    for rows, split in ((16, "space"), (8, "space"), (4, None), (10, None)):
        assert layout.spec((8, rows, rows, 3), axes) == (P("data", split) if split else P("data"))


def test_an_axis_of_one_device_carries_nothing():
    layout = layout_of({"data": 8, "fsdp": 1}, {"batch": (("data", "fsdp"),)}, shard_params="fsdp")
    assert layout.spec((16,), ("batch",)) == P("data")
    assert layout.param_sharding((64, 64), None).spec == P()


def test_a_batch_over_two_axes():
    layout = make_layout(HSDP)
    assert layout.param_sharding((3, 3, 64, 128), None).spec == P(None, None, None, "fsdp")
    assert layout.sharding((32,), ("batch",)).shard_shape((32,)) == (4,)
    assert layout.rows(32) == slice(0, 32)
    with pytest.raises(
        UserError, match=r"12 .* 8 devices of mesh axes 'data' and 'fsdp'.* --config.batch_size=16"
    ):
        layout.rows(12)
    with layouts.use(layout):
        pinned = jax.jit(lambda x: layouts.constrain(x, "batch", None))(np.zeros((16, 4), np.float32))
    assert pinned.sharding.spec == P(("data", "fsdp"))


def test_structs_have_shapes_and_places():
    """A place for each array, or one for a whole branch."""
    layout = layout_of({"data": 8}, {"batch": ("data",)})
    split = layout.sharding((16,), ("batch",))
    shapes = {"a": {"w": np.zeros((16, 2), np.float32)}, "b": (np.zeros(16, np.int32), np.zeros(()))}
    structs = layouts.with_shardings(shapes, {"a": layout.replicated, "b": (split, layout.replicated)})
    assert structs["a"]["w"] == jax.ShapeDtypeStruct((16, 2), np.float32, sharding=layout.replicated)
    assert structs["b"][0] == jax.ShapeDtypeStruct((16,), np.int32, sharding=split)
    assert structs["b"][1].sharding == layout.replicated


def test_constrain_pins_only_where_a_layout_is_in_use():
    x = np.zeros((16, 4), np.float32)
    assert layouts.constrain(x, "batch", "embed") is x
    layout = make_layout(STRATEGIES["fsdp"])
    with layouts.use(layout):
        pinned = jax.jit(lambda x: layouts.constrain(x, "batch", "embed"))(x)
        with pytest.raises(ValueError, match="1 logical axes"):
            layouts.constrain(x, "batch")
    assert pinned.sharding.spec == P("data")
    assert layouts.constrain(x, "batch") is x


# Every strategy against one device.

HSDP = Strategy("hsdp", {"data": 2, "fsdp": 4}, {"batch": (("data", "fsdp"),)}, shard_params="fsdp")
"""Parameters split inside groups of four, copies of which are in two."""
ALL = STRATEGIES | {HSDP.name: HSDP}

SPAN = 8  # samples per group of batch norm: two devices' rows
STAGES = {"float64": (1, 1), "float32": (1,)}  # one bottleneck with a stride is enough, and costs


def toy(precision, **changes):
    return toys.make(toys.SmallResNet, precision, model__stages=STAGES[precision], **changes)


@functools.cache
def compiled(strategy, precision, span):
    """The engine of a strategy (None: one device), and its compiled step."""
    workload = toy(precision, model__bn_span=span)
    layout = make_layout(ALL[strategy]) if strategy else single_device_layout()
    with jax.enable_x64(precision == "float64"):
        engine = Engine(workload, layout)
        return engine, engine.lower("train_step").compile()


def train(strategy, precision, span, steps):
    """Runs `steps` steps from one initial state; returns the losses and the last state."""
    engine, step = compiled(strategy, precision, span)
    with jax.enable_x64(precision == "float64"):
        state = jax.device_put(initial(precision), jax.tree.map(lambda x: x.sharding, engine.state))
        losses = []
        batches = engine.workload.dataset.train_batches(seed=1, batch_size=32, start_step=0, rows=engine.rows)
        for _ in range(steps):
            before = jax.tree.leaves(state)
            state, metrics = step(state, engine.place(next(batches), engine.batch))
            losses.append(float(metrics["loss"]))
            assert all(leaf.is_deleted() for leaf in before), "a donated buffer is still there"
        batches.close()
    return np.array(losses), state


trained = functools.cache(train)


@functools.cache
def initial(precision):
    """The state of seed 1, as numpy arrays, so that every run takes its own copy."""
    workload = toy(precision)
    with jax.enable_x64(precision == "float64"):
        engine = Engine(workload, single_device_layout())
        state = engine.lower("init").compile()(jax.device_put(np.uint32(1), engine.layout.replicated))
        return jax.device_get(state)


def assert_close(actual, expected, relative):
    """Each array to `relative` of its own largest value."""
    named = jax.tree_util.tree_leaves_with_path(expected)
    for (path, a), b in zip(named, jax.tree.leaves(actual), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)
        assert error <= relative, f"{jax.tree_util.keystr(path)} differs by {error:.1e}"


@pytest.mark.parametrize(
    ("strategy", "span"),
    [("dp", 0), ("dp", SPAN), ("zero1", 0), ("fsdp", 0), ("tp", 0), ("fsdp_tp", SPAN), ("hsdp", 0)],
)
def test_ten_steps_agree_with_one_device_in_float64(strategy, span):
    expected_losses, expected = trained(None, "float64", span, STEPS)
    losses, state = trained(strategy, "float64", span, STEPS)
    assert state["params"]["head"]["kernel"].dtype == np.float64
    assert expected_losses[-1] < expected_losses[0]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
    for part in ("params", "model_state", "opt_state"):
        assert_close(state[part], expected[part], 1e-9)
    assert int(state["step"]) == STEPS


@pytest.mark.parametrize("strategy", ["dp", "fsdp_tp"])
def test_reruns_are_bit_identical(strategy):
    first, second = (train(strategy, "float32", 0, STEPS) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_batch_norm_groups_are_not_the_whole_batch():
    """Otherwise the agreement of the runs with groups would show nothing."""
    whole, groups = (trained(None, "float64", span, STEPS)[0] for span in (0, SPAN))
    assert np.abs(whole - groups).max() > 1e-4


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if not name.endswith("_wise")])
def test_first_step_agrees_with_one_device_in_float32(strategy):
    start = initial("float32")
    (expected_loss,), expected = trained(None, "float32", 0, 1)
    (loss,), state = trained(strategy, "float32", 0, 1)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    # The momentum after one step is -lr * (gradient + decay), and what was added to the parameters.
    assert_close(state["opt_state"].momentum, expected["opt_state"].momentum, 1e-4)
    for run in (state, expected):
        added = jax.tree.map(lambda new, old: np.asarray(new) - old, run["params"], start["params"])
        assert_close(added, run["opt_state"].momentum, 1e-3)  # a small difference of large numbers
    assert_close(state["model_state"], expected["model_state"], 1e-4)


SHARES = {  # strategy -> devices over which large parameters and their momentum are split
    "dp": (1, 1),
    "zero1": (1, 8),
    "fsdp": (8, 8),
    "tp": (2, 2),
    "fsdp_tp": (8, 8),
    "hsdp": (4, 4),
}


@pytest.mark.parametrize("strategy", list(SHARES))
def test_bytes_per_device_fall_as_the_strategy_says(strategy):
    engine, step = compiled(strategy, "float32", 0)
    _, state = trained(strategy, "float32", 0, 1)
    large = ("['stem']", "['conv2']", "['conv3']", "['conv_shortcut']")
    split = 0
    for part, share in zip(("params", "opt_state"), SHARES[strategy], strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(state[part]):
            held = {shard.data.nbytes for shard in leaf.addressable_shards}
            name = jax.tree_util.keystr(path)
            if leaf.size >= MIN_SHARDED_SIZE and any(part in name for part in large):
                assert held == {leaf.nbytes // share}, name
                split += 1
            elif strategy in ("dp", "zero1", "fsdp", "hsdp"):
                small = leaf.size < MIN_SHARDED_SIZE
                assert held == {leaf.nbytes} or not small, name
    assert split >= 6
    per_device = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(engine.state)
    )
    memory = step.memory_analysis()
    # Everything that is trained is donated: its memory is the result's.
    assert memory.alias_size_in_bytes >= per_device
    shapes = jax.tree.leaves(jax.tree.map(lambda x: x.sharding, engine.state))
    assert [leaf.sharding for leaf in jax.tree.leaves(state)] == shapes


def test_initial_state_is_the_same_in_every_layout():
    engine = Engine(toy("float32"), make_layout(STRATEGIES["fsdp_tp"]))
    state = engine.lower("init").compile()(jax.device_put(np.uint32(1), engine.layout.replicated))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(initial("float32")), strict=True):
        np.testing.assert_array_equal(a, b)
