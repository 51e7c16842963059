"""The attention function: every implementation against the plain one, under every mask, and the plain one against loops."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.planning import topology
from models import random_bits
from models.attention_blockwise import blockwise
from models.attention_function import attend, choose
from models.attention_mask import Mask

ROWS, LENGTH, WIDTH = 2, 128, 8
HEADS = {"each": (4, 4), "grouped": (4, 2), "one": (4, 1)}
MASKS = {
    "all": {},
    "causal": dict(causal=True),
    "window": dict(window=37),
    "causal_window": dict(causal=True, window=37),
}
RUN_HERE = ("blockwise", "kernel", "splash")


def arrays(seed, heads, key_heads, keys=LENGTH, dtype=np.float32):
    random = np.random.default_rng(seed)
    shapes = [(LENGTH, heads), (keys, key_heads), (keys, key_heads), (LENGTH, heads)]
    return [random.normal(size=(ROWS, n, h, WIDTH)).astype(dtype) for n, h in shapes]


def segments(seed, length=LENGTH):
    """Packed rows: sentences of random lengths one after the other, and padding."""
    random = np.random.default_rng(seed)
    rows = np.zeros((ROWS, length), np.int32)
    for row in rows:
        at, number = 0, 1
        while at < length - random.integers(0, length // 3):
            end = at + random.integers(1, length // 2)
            row[at:end] = number
            at, number = end, number + 1
    return rows


def masks(name, packed, seed, keys=LENGTH):
    ids = (
        (segments(seed), segments(seed + 1, keys) if keys != LENGTH else segments(seed))
        if packed
        else (None, None)
    )
    return Mask(*ids, **MASKS[name])


@functools.partial(jax.jit, static_argnames=("causal", "window", "rate", "choice", "scale"))
def both(q, k, v, g, ids, key, *, causal=False, window=None, rate=0.0, choice="plain", scale=None):
    """The result, and the gradients of q, k and v."""

    def function(q, k, v):
        mask = Mask(*ids, causal=causal, window=window)
        return attend(q, k, v, mask, scale=scale, rate=rate, key=key, choice=choice)

    out, back = jax.vjp(function, q, k, v)
    return out, *back(g)


def run(choice, inputs, mask, *, rate=0.0, key=None, scale=None):
    with jax.default_matmul_precision("highest"):
        results = both(
            *inputs,
            (mask.query_segment, mask.key_segment),
            key,
            causal=mask.causal,
            window=mask.window,
            rate=rate,
            choice=choice,
            scale=scale,
        )
    return [np.asarray(x) for x in results]


def assert_same(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("choice", RUN_HERE)
def test_every_implementation_is_the_plain_one(choice, mask, packed):
    seed = len(mask) + 10 * packed
    heads = list(HEADS.values())[seed % 3]
    inputs, mask = arrays(seed, *heads), masks(mask, packed, seed)
    assert_same(run(choice, inputs, mask), run("plain", inputs, mask))


def test_the_kernel_takes_queries_in_blocks():
    """Two blocks of 128 queries before 2,048 keys, whose gradients add up."""
    from models import attention_kernel

    random = np.random.default_rng(0)
    shapes = (256, 4), (2048, 2), (2048, 2), (256, 4)
    inputs = [random.normal(size=(1, *shape, 8)).astype(np.float32) for shape in shapes]
    ids = np.repeat([[1, 2]], 1024, 1).astype(np.int32)
    mask, dropout = (
        Mask(ids[:, 896:1152], ids, causal=True, window=200),
        dict(rate=0.2, key=jax.random.key(1)),
    )
    options = attention_kernel.Options(8, 2, True, 200, True, 1.0, 0.2, 4, True)
    assert attention_kernel._Call(options, *(x.reshape(*x.shape[:2], -1) for x in inputs[:2])).grid == (
        1,
        1,
        2,
    )
    assert_same(run("kernel", inputs, mask, **dropout), run("plain", inputs, mask, **dropout))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize(("length", "heads", "key_heads"), [(512, 16, 16), (2048, 8, 2)])
def test_the_tpu_compiler_has_room_for_the_kernel(length, heads, key_heads):
    """BERT-large's attention with dropout, forward and back, and longer rows: 16 MiB of on-chip memory."""
    from models import attention_kernel

    (chip, *_) = topology.devices(topology.parse("v5e:2x2"))
    sharding = jax.sharding.SingleDeviceSharding(chip)
    options = attention_kernel.Options(64, heads // key_heads, False, None, True, 0.125, 0.1, heads, False)

    def loss(q, k, v, segments, seed, row, head):
        out = attention_kernel.attend(options, q, k, v, Mask(segments, segments), seed, row, head)
        return out.astype(jnp.float32).sum()

    shapes = [(2, length, count, 64) for count in (heads, key_heads, key_heads)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for shape in shapes]
    others = ((2, length), jnp.int32), ((2,), jnp.uint32), ((), jnp.int32), ((), jnp.int32)
    arrays += [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in others]
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile().as_text()
    assert "attention_backward" in text


@pytest.mark.parametrize("choice", ["blockwise", "kernel"])
def test_queries_that_see_no_key(choice):
    """Of another sequence, where some segments are not: a mean, and no gradient of scores."""
    inputs, mask = arrays(4, 4, 2, 256), masks("all", True, 4, 256)
    blind = ~(mask.query_segment[:, :, None] == mask.key_segment[:, None]).any(2)
    assert blind.any() and not blind.all()
    ours, expected = run(choice, inputs, mask), run("plain", inputs, mask)
    assert_same(ours, expected)
    assert (ours[1][blind] == 0).all()


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("choice", ["blockwise", "kernel"])
def test_dropout_is_the_same_in_every_implementation(choice, heads):
    inputs, mask = arrays(3, *HEADS[heads]), masks("causal", True, 3)
    dropout = dict(rate=0.3, key=jax.random.key(5), scale=0.4)
    ours, expected = run(choice, inputs, mask, **dropout), run("plain", inputs, mask, **dropout)
    assert_same(ours, expected)
    without = run("plain", inputs, mask, scale=0.4)
    assert all(np.abs(a - b).max() > 0.1 for a, b in zip(expected, without, strict=True))


def by_loops(q, k, v, mask, scale, weight_of):
    """One query after the other, in float64; NaN where a query sees no key."""
    out = np.full(q.shape, np.nan)
    share = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(q.shape[:3]):
        seen = [
            j
            for j in range(k.shape[1])
            if (mask.query_segment is None or mask.query_segment[b, i] == mask.key_segment[b, j])
            and not (mask.causal and j > i)
            and not (mask.window is not None and abs(i - j) >= mask.window)
        ]
        if seen:
            scores = np.array([q[b, i, h] @ k[b, j, h // share] * scale for j in seen], np.float64)
            weights = np.exp(scores - scores.max())
            weights = weights / weights.sum() * np.array([weight_of(b, h, i, j) for j in seen])
            out[b, i, h] = weights @ v[b, seen, h // share]
    return out


@pytest.mark.parametrize("rate", [0.0, 0.25])
@pytest.mark.parametrize("mask", MASKS)
def test_the_plain_one_is_what_loops_give(mask, rate):
    """With as many keys as queries, and half as many; dropout by the number of each weight."""
    seed = len(mask)
    keys, key = LENGTH // 2 if mask == "all" else LENGTH, jax.random.key(seed)
    inputs, mask = arrays(seed, 4, 2, keys), masks(mask, True, seed, keys)
    size = (ROWS, 4, LENGTH, keys)
    keep = random_bits.kept(random_bits.seed_of(key), jnp.arange(np.prod(size), dtype=jnp.uint32), rate)
    weights = np.asarray(keep).reshape(size) / (1 - rate)
    expected = by_loops(*inputs[:3], mask, WIDTH**-0.5, lambda *at: weights[at] if rate else 1.0)
    ours = run("plain", inputs, mask, rate=rate, key=key)[0]
    seeing = ~np.isnan(expected)
    assert seeing.mean() > 0.5 and np.isfinite(ours).all()
    np.testing.assert_allclose(ours[seeing], expected[seeing], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("option", ["segments", "padding", "causal", "window"])
@pytest.mark.parametrize("choice", ["plain", *RUN_HERE])
def test_what_is_hidden_changes_nothing_and_what_is_seen_does(choice, option):
    """Keys and values of a stretch are put out of joint: queries that must not see it find the same, bit for bit."""
    inputs, stretch = arrays(8, 4, 2), slice(48, 80)
    ids, hidden = np.ones((ROWS, LENGTH), np.int32), np.ones(LENGTH, bool)
    if option == "segments":
        ids[:, stretch] = 2
        mask, hidden[stretch] = Mask(ids, ids), False
    elif option == "padding":
        keys = ids.copy()
        keys[:, stretch] = 0
        mask = Mask(ids, keys)
    elif option == "causal":
        mask, hidden[stretch.start :] = Mask(causal=True), False
    else:
        mask, hidden[stretch.start - 9 : stretch.stop + 9] = Mask(window=10), False
    moved = [x.copy() for x in inputs]
    for x in moved[1:3]:
        x[:, stretch] = 1e3 * np.flip(x[:, stretch])
    a, b = run(choice, inputs, mask), run(choice, moved, mask)
    np.testing.assert_array_equal(a[0][:, hidden], b[0][:, hidden])
    if option != "padding":
        assert (np.abs(a[0] - b[0])[:, ~hidden].max((0, 2, 3)) > 0.1).all()
    if option == "padding":  # what nobody sees has no gradient
        assert all((x[:, stretch] == 0).all() for x in b[2:])


@pytest.mark.parametrize("keys", [1, 37, 64])
def test_blocks_need_not_divide_the_keys(keys):
    inputs, mask = arrays(keys, 4, 2, keys), masks("all", keys == 37, keys, keys)
    dropout = dict(rate=0.2, key=jax.random.key(1))
    seed = random_bits.seed_of(dropout["key"])

    def in_blocks(q, k, v):
        return blockwise(q, k, v, mask, scale=WIDTH**-0.5, rate=0.2, seed=seed, block=16)

    with jax.default_matmul_precision("highest"):
        out, back = jax.vjp(in_blocks, *inputs[:3])
        ours = [out, *back(inputs[3])]
    assert_same([np.asarray(x) for x in ours], run("plain", inputs, mask, **dropout))


@pytest.mark.parametrize("choice", ["plain", "blockwise"])
def test_scores_are_float32_at_least_and_float64_stays(choice):
    with jax.enable_x64(True):
        inputs = arrays(2, 4, 2, dtype=np.float64)
        ours, expected = (run(c, inputs, masks("causal", True, 2)) for c in (choice, "plain"))
        for a, b in zip(ours, expected, strict=True):
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays(2, 4, 2)]
    text = str(jax.make_jaxpr(lambda *x: attend(*x, choice=choice))(*half[:3]))
    assert "exp" in text and not any("bf16" in line for line in text.splitlines() if " exp " in line)


def test_no_row_of_scores_lies_in_memory():
    """Of a program for 2,048 keys no array is as large as [L, M], in either pass."""
    shape = jax.ShapeDtypeStruct((1, 2048, 1, 8), jnp.float32)

    def largest(choice):
        function = jax.grad(
            lambda q, k, v: attend(q, k, v, Mask(causal=True), choice=choice).sum(), (0, 1, 2)
        )
        stats = jax.jit(function).lower(shape, shape, shape).compile().memory_analysis()
        return stats.temp_size_in_bytes / (2048 * 2048 * 4)

    assert largest("blockwise") < 1 < largest("plain")


BIG = dict(queries=256, keys=256, width=64, dtype=jnp.bfloat16, dropout=False)


@pytest.mark.parametrize(
    ("platform", "changes", "expected"),
    [
        ("tpu", dict(dropout=True), "kernel"),
        ("tpu", dict(queries=4096, keys=4096), "splash"),
        ("tpu", dict(queries=4096, keys=4096, dropout=True), "blockwise"),
        ("tpu", dict(queries=300, keys=300), "blockwise"),
        ("tpu", dict(queries=4), "plain"),
        ("tpu", dict(queries=4096, keys=4096, split=True), "blockwise"),
        ("gpu", {}, "cudnn"),
        ("gpu", dict(mask=Mask(causal=True, window=8)), "cudnn"),
        ("gpu", dict(mask=Mask(window=8)), "blockwise"),
        ("gpu", dict(dropout=True), "blockwise"),
        ("gpu", dict(dtype=jnp.float32, queries=4096, keys=4096), "blockwise"),
        ("cpu", {}, "blockwise"),
        ("cpu", dict(keys=64), "plain"),
    ],
)
def test_what_auto_chooses(platform, changes, expected):
    assert choose("auto", **BIG | changes, platform=platform) == expected


@pytest.mark.parametrize(
    ("choice", "platform", "changes", "said"),
    [
        ("flash", "cpu", {}, "'flash' is none of auto, plain"),
        ("cudnn", "cpu", {}, "'cudnn' is not there on cpu"),
        ("cudnn", "gpu", dict(dropout=True), "has no dropout"),
        ("cudnn", "gpu", dict(dtype=jnp.float32), "16-bit heads"),
        ("cudnn", "gpu", dict(mask=Mask(window=8)), "windows of causal attention only"),
        ("splash", "tpu", dict(dropout=True), "has no dropout"),
        ("splash", "tpu", dict(keys=200), "multiples of 128"),
        ("kernel", "tpu", dict(queries=200), "multiples of 128"),
        ("kernel", "tpu", dict(keys=4096), "up to 2048 keys"),
        ("kernel", "cpu", dict(dtype=jnp.float64), "float32 at most"),
        ("splash", "tpu", dict(split=True), "takes whole rows, and the layout splits them"),
    ],
)
def test_what_an_implementation_cannot_do_it_refuses(choice, platform, changes, said):
    with jax.enable_x64(True), pytest.raises(ValueError, match=said):
        choose(choice, **BIG | changes, platform=platform)


def test_masks_and_heads_that_cannot_be():
    ids = np.zeros((1, 4), np.int32)
    with pytest.raises(ValueError, match="queries and of keys together"):
        Mask(ids)
    with pytest.raises(ValueError, match="window of 0"):
        Mask(window=0)
    with pytest.raises(ValueError, match="3 heads of keys do not divide 4"):
        attend(*arrays(0, 4, 3)[:3])


@pytest.mark.parametrize("key_heads", [4, 1])
@pytest.mark.parametrize("choice", ["plain", "blockwise", "kernel", "splash"])
def test_rows_and_heads_over_devices(choice, key_heads):
    """Heads over an axis of two where those of keys divide, rows over one of four: the same, dropout too."""
    from mlperf_jax.parallel import layout as layouts
    from mlperf_jax.parallel import mesh

    inputs, ids = arrays(6, 4, key_heads), segments(6)
    inputs, ids = [np.concatenate([x, x + 1]) for x in inputs], np.concatenate([ids, segments(7)])
    dropout = dict(rate=0.0 if choice == "splash" else 0.3, key=jax.random.key(2))

    def on(layout):
        @jax.jit  # of its own: jax keeps traces, and with them the layout, by function
        def function(q, k, v, g, ids):
            mask = Mask(ids, ids, causal=True)
            out, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask, choice=choice, **dropout), q, k, v)
            return out, *back(g)

        with layouts.use(layout), jax.default_matmul_precision("highest"):
            return function(*inputs, ids)

    split = on(mesh.make_layout(mesh.find_strategy("tp"), {"data": 4, "model": 2}))
    for a, b in zip(split, on(None), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_cudnn_that_is_not_there_is_a_sentence(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo

    from models import attention_library

    def missing():
        raise RuntimeError("cuDNN not found.")

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", missing)
    q = jnp.zeros((1, 8, 2, 16), jnp.bfloat16)
    with pytest.raises(
        UserError, match=r"cuDNN's \(cuDNN not found\.\); install it with: pip install -e '.\[cuda\]'"
    ):
        attention_library.cudnn(q, q, q, Mask(causal=True), scale=1.0)


def lowered_for_cudnn(monkeypatch, mask):
    """The call of cuDNN in a program for a GPU that is not there, forward and backward."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    from models import attention_library

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda *_: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda *_: False)
    q, k, v, g = (jnp.asarray(x, jnp.bfloat16) for x in arrays(0, 4, 2))

    def function(q, k, v):
        return jax.vjp(lambda *x: attention_library.cudnn(*x, mask, scale=0.5), q, k, v)[1](g)

    text = jax.jit(function).trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
    calls = [line.replace("\\22", '"') for line in text.splitlines() if "@__cudnn" in line]
    assert len(calls) == 2
    return calls


@pytest.mark.parametrize("mask", [m for m in MASKS if m != "window"])
def test_cudnn_is_told_of_every_mask(monkeypatch, mask):
    seen = f"tensor<{ROWS}x1x{LENGTH}x{LENGTH}xbf16>"
    for packed in (False, True):
        for call in lowered_for_cudnn(monkeypatch, masks(mask, packed, 0)):
            assert ('"mask_type": "CAUSAL"' in call) == ("causal" in mask)
            assert ('"sliding_window_length": 37' in call) == ("window" in mask)
            assert (seen in call) == packed  # segments, as what is added to scores
            assert '"fmha_scale": 0.5' in call
