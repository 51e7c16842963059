"""What is counted of Pallas kernels, against counts by hand, and how `plan` finds them in compiled programs."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mlperf_jax.parallel.chips import CHIPS
from mlperf_jax.planning import cost, cost_kernels, cost_time, hlo
from mlperf_jax.planning.cost_kernels import Kernel
from models import attention_library, grouped_product
from models.attention_mask import Mask

V5E = next(chip for chip in CHIPS if chip.name == "v5e")


def body(x, y, out):
    """Of blocks 64 x 32 and 32 x 256: the product, an exponential, and the rows' sums taken away."""
    z = jnp.exp(jnp.dot(x[...], y[...], preferred_element_type=jnp.float32))
    out[...] = z - z.sum(1, keepdims=True)


def multiplied(x, y):
    return pl.pallas_call(
        body,
        grid=(4, 2),
        in_specs=[pl.BlockSpec((64, 32), lambda i, j: (i, 0)), pl.BlockSpec((32, 256), lambda i, j: (0, j))],
        out_specs=pl.BlockSpec((64, 256), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((256, 512), jnp.float32),
        name="multiplied",
        interpret=True,
    )(x, y)


def traced(function):
    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 32), (32, 512)))
    return jax.make_jaxpr(function)(*shapes)


# A program: 64 rows by 128 deep (32 filled up) by 256 columns; three operations on 64 x 256 elements.
EXPECTED = Kernel(matrix=8 * 2 * 64 * 128 * 256, vector=8 * 3 * 64 * 256)


def test_a_kernel_is_counted_by_its_grid():
    assert cost_kernels.kernels(traced(multiplied)) == {("multiplied", ((256, 512),), ""): EXPECTED}
    assert cost.jaxpr_flops(traced(multiplied)).total == 2 * 256 * 32 * 512


def test_kernels_are_found_in_loops_and_under_jit():
    def looped(x, y):
        return jax.lax.scan(
            lambda c, _: (c + jax.jit(multiplied)(x, y), None), jnp.zeros((256, 512)), length=3
        )

    assert cost_kernels.kernels(traced(looped)) == {("multiplied", ((256, 512),), ""): EXPECTED}
    assert cost.jaxpr_flops(traced(looped)).total == 3 * 2 * 256 * 32 * 512


def test_of_splash_attention_what_a_mask_hides_is_no_work():
    """Four blocks of 1,024: ten of sixteen are seen causally, seven by a window of 600; in a scan, backwards too."""
    shape = jax.ShapeDtypeStruct((1, 4096, 2, 128), jnp.bfloat16)

    def counted(mask):
        def total(q, k, v):
            layer = jax.checkpoint(
                lambda q: attention_library.splash(q, k, v, mask, scale=0.1, interpret=False)
            )
            return jax.lax.scan(lambda x, _: (layer(x), None), q, length=3)[0].astype(jnp.float32).sum()

        return cost_kernels.kernels(jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(shape, shape, shape))

    everything, causal, window = map(counted, (Mask(), Mask(causal=True), Mask(causal=True, window=600)))
    assert len(everything) == 2 and set(causal) == set(everything)
    for key, kernel in everything.items():
        assert kernel.matrix % 16 == 0
        assert causal[key].matrix * 16 == kernel.matrix * 10
    assert {scope for _, _, scope in window} == {"window_600"}
    products = {kernel.matrix for kernel in window.values()}
    assert {7 * kernel.matrix // 16 for kernel in everything.values()} == products


PROGRAM = """HloModule jit_step, is_scheduled=true

ENTRY %main (x: f32[256,32], y: f32[32,512]) -> f32[256,512] {
  %x = f32[256,32]{1,0:T(8,128)} parameter(0)
  %y = f32[32,512]{1,0:T(8,128)} parameter(1)
  ROOT %call = f32[256,512]{1,0:T(8,128)} custom-call(%x, %y), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(step)/jvp(multiplied)/pallas_call"}, \
backend_config={"custom_call_config":{"body":"TUw","cost_estimate":{"flops":"8388608","bytes_accessed":"1"}}}
}
"""


def test_a_compiled_kernel_takes_what_was_counted():
    module = hlo.parse(PROGRAM)
    found = cost_kernels.kernels(traced(multiplied))
    slow = {key: dataclasses.replace(kernel, vector=10**9) for key, kernel in found.items()}
    played = cost_time.timeline(module, V5E, [], slow)
    assert played.seconds == slow["multiplied", ((256, 512),), ""].seconds(V5E) > 1e9 / (4096 * V5E.clock)
    assert cost.hlo_flops(module) == 2 * 256 * 32 * 512
    # One that moves more than it computes takes what memory needs, as one that is not known does.
    moved = (256 * 128 + 32 * 512 + 256 * 512) * 4 / V5E.hbm_bandwidth
    for known in (found, {}):
        assert cost_time.timeline(module, V5E, [], known).seconds == moved


def test_the_name_and_the_shapes_must_be_the_kernels():
    (call,) = [i for i in hlo.parse(PROGRAM).computations["main"].values() if i.opcode == "custom-call"]
    shapes = ((256, 512),)
    assert cost_kernels.of_instruction(call, {("multiplied", shapes, ""): EXPECTED}) == EXPECTED
    assert cost_kernels.of_instruction(call, {("added", shapes, ""): EXPECTED}) is None
    assert cost_kernels.of_instruction(call, {("multiplied", ((256, 256),), ""): EXPECTED}) is None
    assert cost_kernels.of_instruction(call, {("multiplied", shapes, "window_9"): EXPECTED}) is None


GROUPED = """HloModule jit_step, is_scheduled=true

ENTRY %main (x: f32[896,128], y: f32[4,128,256]) -> f32[896,256] {
  %x = f32[896,128]{1,0} parameter(0)
  %y = f32[4,128,256]{2,1,0} parameter(1)
  ROOT %call = f32[896,256]{1,0} custom-call(%x, %y), custom_call_target="__gpu$xla.gpu.triton", \
metadata={op_name="jit(step)/jvp(grouped_product)/pallas_call"}
}
"""


def test_of_a_gpus_grouped_product_blocks_are_counted_not_groups():
    """300 rows of four groups fill at most seven blocks of 128, forwards, backwards and in the kernels' gradients."""
    form = grouped_product.triton()

    def total(rows, kernels, sizes):
        return grouped_product._by_blocks(form, rows, kernels, sizes).sum()

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((300, 128), (4, 128, 256)))
    jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1)))(*shapes, jax.ShapeDtypeStruct((4,), jnp.int32))
    one = 2 * 7 * 128 * 128 * 256
    assert cost.jaxpr_flops(jaxpr).total == 3 * one
    found = cost_kernels.kernels(jaxpr, tile=cost_kernels.TILES["gpu"])
    results = {("grouped_product", ((896, 256),), ""), ("grouped_product", ((896, 128),), "")}
    assert {key: kernel.matrix for key, kernel in found.items()} == dict.fromkeys(
        results | {("grouped_sums", ((4, 128, 256),), "")}, one
    )
    module = hlo.parse(GROUPED)
    h200 = next(chip for chip in CHIPS if chip.name == "h200")
    assert (cost.hlo_flops(module), cost_kernels.unstated_flops(module, found)) == (0, one)
    moved = (896 * 128 + 4 * 128 * 256 + 896 * 256) * 4 / h200.hbm_bandwidth
    played = cost_time.timeline(module, h200, [], found).seconds
    assert played == max(one / h200.bf16, moved) + cost_time.GPU_LAUNCH_SECONDS
