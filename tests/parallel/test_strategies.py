"""Strategies beyond the plain ones: image height split over devices, a user's file, several slices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel import mesh
from mlperf_jax.planning import cost_network, hlo
from mlperf_jax.planning.replica_groups import replica_groups
from mlperf_jax.precision import POLICIES
from models.layers import Conv, convolve
from models.norms import BatchNorm

FILE = """
shard_params = "data"
[mesh]
data = -1
model = 2
[rules]
batch = ["data"]
conv_out = ["model"]
"""


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_a_users_strategy(tmp_path):
    strategy = mesh.find_strategy(write(tmp_path, FILE))
    assert (strategy.name, strategy.shard_params, strategy.shard_optimizer) == ("mine", "data", None)
    layout = mesh.make_layout(strategy)
    assert dict(layout.mesh.shape) == {"data": 4, "model": 2}
    spec = layout.param_sharding((3, 3, 64, 32), (None, None, "conv_in", "conv_out")).spec
    assert spec == jax.sharding.PartitionSpec(None, None, "data", "model")


def test_a_users_rules_name_axes_alone_and_together(tmp_path):
    text = FILE.replace('batch = ["data"]', 'batch = [["data", "model"], "data"]')
    strategy = mesh.find_strategy(write(tmp_path, text))
    assert strategy.rules == {"batch": (("data", "model"), "data"), "conv_out": ("model",)}
    layout = mesh.make_layout(strategy)
    specs = [layout.spec((size,), ("batch",)) for size in (16, 12)]
    assert specs == [jax.sharding.PartitionSpec(("data", "model")), jax.sharding.PartitionSpec("data")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[mesh]", "[mash]"), "no key 'mash'"),
        (("model = 2", "model = 0"), "'model' = 0 is no size"),
        (("model = 2", "model = true"), "is no size"),
        (("model = 2", "model = -1"), "only one"),
        (('["model"]', '["modle"]'), "no mesh axis 'modle'"),
        (('["model"]', '"model"'), "is no list"),
        (('["model"]', "[3]"), "3 of rule 'conv_out' is neither a mesh axis nor a list"),
        (('["model"]', "[[]]"), "() of rule 'conv_out' is neither"),
        (('["model"]', '[["model", "model"]]'), "nor a list of different ones"),
        (('["model"]', '[["data", "modle"]]'), "no mesh axis 'modle'"),
        (('shard_params = "data"', 'shard_params = "rows"'), "no mesh axis 'rows'"),
        (('shard_params = "data"', "shard_params = 3"), "shard_params is no mesh axis"),
        (("[mesh]", "[mesh"), "no TOML file"),
    ],
)
def test_mistakes_in_a_users_strategy(tmp_path, change, said):
    with pytest.raises(UserError, match="mine.toml") as caught:
        mesh.find_strategy(write(tmp_path, FILE.replace(*change)))
    assert said in str(caught.value)


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match="cannot be read"):
        mesh.find_strategy("nowhere/mine.toml")


class Slice:
    """Stands for a TPU of one of several slices."""

    platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

    def __init__(self, number):
        self.id, self.slice_index, self.process_index = number, number // 4, number // 4
        self.coords = (number % 2, number // 2 % 2, 0)


def test_only_the_first_axis_crosses_slices():
    devices = [Slice(n) for n in range(8)]
    placed = mesh._hybrid({"data": 4, "model": 2}, devices)
    assert placed.shape == (4, 2)
    for row in placed:  # tensor parallelism stays inside a slice
        assert row[0].slice_index == row[1].slice_index
    with pytest.raises(UserError, match="3 does not divide over 2 slices"):
        mesh._hybrid({"data": 3, "model": 1}, devices)


def _windows(x, kernel, stride, size):
    """A convolution, and a max-pool padded like TensorFlow's SAME: both read across the seams."""
    x = layouts.constrain(x, "batch", "height", "width", None)
    y = layouts.constrain(convolve(x, kernel, stride, "SAME"), "batch", "height", "width", None)
    return jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, 2, 2, 1), "SAME")


@pytest.mark.parametrize(("kernel", "stride", "height"), [(3, 1, 16), (7, 2, 32), (3, 2, 24)])
def test_spatial_partitioning_is_exact_at_the_seams(kernel, stride, height):
    """Height over two devices against one device, outputs and gradients, in float64."""
    with jax.enable_x64(True):
        random = np.random.default_rng(kernel * height)
        x = jnp.asarray(random.normal(size=(4, height, 6, 3)))
        w = jnp.asarray(random.normal(size=(kernel, kernel, 3, 4)))
        weights = jnp.asarray(random.normal(size=_windows(x, w, stride, 3).shape))

        def loss(x, w):
            out = _windows(x, w, stride, 3)
            return jnp.sum(weights * out**2), out

        def run(layout):
            def traced(x, w):
                return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, w)

            with layouts.use(layout):
                lowered = jax.jit(traced).lower(layout.struct(x.shape, x.dtype, ("batch", "height")), w)
            placed = jax.device_put(x, layout.sharding(x.shape, ("batch", "height")))
            compiled = lowered.compile()
            return compiled(placed, w), compiled.as_text()

        one, _ = run(mesh.single_device_layout())
        split, text = run(mesh.make_layout(mesh.find_strategy("spatial")))
        assert "collective-permute" in text  # rows are exchanged, not the whole image gathered
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(split), strict=True):
            np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=1e-12, atol=1e-12)


def test_a_height_that_does_not_divide_stays_whole():
    layout = mesh.make_layout(mesh.find_strategy("spatial"))
    assert layout.spec((8, 7, 7, 64), ("batch", "height", "width", "channels")) == jax.sharding.PartitionSpec(
        "data"
    )


def test_conv_layer_under_spatial_partitioning():
    """The models' own layer, whose 1x1 kernels are products of matrices: strides cross the seams too."""
    with jax.enable_x64(True):
        layer = Conv(3, 4, 1, stride=2, policy=POLICIES["float64"], rngs=nnx.Rngs(0))
        x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 6, 3)))
        expected = layer(x)
        layout = mesh.make_layout(mesh.find_strategy("spatial"))
        placed = jax.device_put(x, layout.sharding(x.shape, ("batch", "height")))
        np.testing.assert_allclose(
            np.asarray(jax.jit(lambda x: layer(x))(placed)), np.asarray(expected), rtol=1e-12
        )


@pytest.mark.parametrize(("span", "group"), [(2, 1), (4, 2), (8, 4)])
def test_batch_norm_groups_reduce_inside_their_devices(span, group):
    """16 samples on 8 devices: `span` samples lie on `group` devices, and no statistics are gathered."""
    norm = BatchNorm(4, span=span, policy=POLICIES["float32"])
    graph, params, rest = nnx.split(norm, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    layout = mesh.make_layout(mesh.find_strategy("dp"))

    def loss(params, x):
        x = layouts.constrain(x, "batch", "height", "width", "channels")
        model = nnx.merge(graph, params, jax.tree.map(jnp.copy, rest))
        return jnp.sum(layouts.constrain(model(x, train=True), "batch", "height", "width", "channels") ** 3)

    with layouts.use(layout):
        x = layout.struct((16, 2, 2, 4), jnp.float32, ("batch",))
        text = jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile().as_text()
    module = hlo.parse(text)
    found = [i for i, _, _ in hlo.walk(module) if cost_network.collective_kind(i)]
    assert {i.opcode for i in found} == {"all-reduce"}
    sizes = {len(replica_groups(i, 8)[0]) for i in found}
    assert sizes == ({8} if group == 1 else {group, 8})  # 8: the gradients of scale and bias


def test_mesh_sizes_are_for_strategies_that_have_the_axes():
    dp, both = mesh.find_strategy("dp"), mesh.find_strategy("fsdp_tp")
    sizes = {"data": 2, "model": 4}
    assert mesh.asked_of([dp, both], sizes) == [{}, sizes]
    with pytest.raises(UserError, match="no mesh axis 'modle'"):
        mesh.asked_of([dp, both], {"modle": 4})
