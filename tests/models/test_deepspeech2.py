"""DeepSpeech2: the reference's size by name, PyTorch's numbers and gradients, what padding may change."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.precision import POLICIES
from mlperf_jax.speech.ctc import ctc_loss
from models.deepspeech2 import DeepSpeech2, DeepSpeech2Config, frames_after, train_flops_per_recording

SMALL = DeepSpeech2Config(
    bins=25,
    channels=(3, 4),
    windows=((3, 7), (3, 5)),
    strides=((2, 2), (1, 2)),
    width=6,
    num_layers=3,
    vocab_size=5,
)
BATCH, TIME = 4, 27


def built(config, policy="float32"):
    with jax.enable_x64(policy == "float64"):
        model = nnx.eval_shape(lambda: DeepSpeech2(config, policy=POLICIES[policy], rngs=nnx.Rngs(0)))
    return nnx.split(model, nnx.Param, ...)


def texts(tree):
    """Lists of a tree as dicts whose numbers are texts, as a peer is handed them."""
    return {str(k): texts(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree)


def drawn(config, precision):
    """Weights and statistics none of which is at its first value: nested dicts of NumPy arrays."""
    _, params, stats = built(config, precision)
    random = np.random.default_rng(1)

    def draw(path, x):
        value = random.normal(size=x.shape) * 0.3
        return (value**2 + 0.5 if path[-1].key in ("var", "scale") else value).astype(x.dtype)

    return [jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(s)) for s in (params, stats)]


def test_the_closed_model_has_the_references_parameters():
    _, params, _ = built(DeepSpeech2Config())
    sizes = {"/".join(map(str, path)): math.prod(leaf.shape) for path, leaf in nnx.to_flat_state(params)}

    def gru(features_in):  # two kernels and PyTorch's two biases
        return 3 * 2560 * (features_in + 2560 + 2)

    by_part = {
        "convolutions/0": 41 * 11 * 32 + 32,
        "norms/0": 2 * 32,
        "convolutions/1": 21 * 11 * 32 * 32 + 32,
        "norms/1": 2 * 32,
        "layers/0": gru(21 * 32),
        "layers/1": gru(2560),
        "layers/2": gru(2560),
        "norm": 2 * 2560,
        "kernel": 2560 * 29,
    }
    found = {
        part: sum(n for name, n in sizes.items() if name.startswith(part + "/") or name == part)
        for part in by_part
    }
    assert found == by_part
    assert sum(sizes.values()) == sum(by_part.values()) == 103_841_568
    biases = sum(n for name, n in sizes.items() if "layers" in name and "bias" in name)
    assert sum(sizes.values()) - biases == 103_795_488


@pytest.mark.parametrize(
    ("precision", "close", "of_gradients"), [("float32", 1e-4, 1e-3), ("float64", 1e-9, 1e-9)]
)
def test_numbers_and_gradients_are_pytorchs(precision, close, of_gradients):
    """Through CTC, in training and in evaluation; with the running statistics."""
    torch = pytest.importorskip("torch", reason="PyTorch judges ours")
    from benchmarks.peers.deepspeech2 import TorchDeepSpeech2, take

    params, stats = drawn(SMALL, precision)
    graph, _, _ = built(SMALL, precision)
    random = np.random.default_rng(2)
    x = random.normal(size=(BATCH, TIME, SMALL.bins)).astype(precision)
    labels, counts = random.integers(1, 5, (BATCH, 3)), np.array([3, 1, 0, 2])
    frames = np.array([11, 9, 11, 7])

    def loss(params):
        model = nnx.merge(graph, params, stats)
        logits = model(x, train=True)
        return ctc_loss(logits, frames, labels, counts).mean(), (logits, nnx.state(model, nnx.BatchStat))

    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        (value, (logits, after)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        evaluated = jax.jit(lambda: nnx.merge(graph, params, stats)(x, train=False))()
    judge = TorchDeepSpeech2(SMALL).to(getattr(torch, precision))
    take(judge, texts(params), texts(stats))
    np.testing.assert_allclose(evaluated, judge.eval()(torch.tensor(x)).detach(), rtol=close, atol=close)
    expected = judge.train()(torch.tensor(x))
    judged = torch.nn.functional.ctc_loss(
        expected.log_softmax(-1).transpose(0, 1),
        *map(torch.tensor, (labels, frames, counts)),
        reduction="none",
    ).mean()
    judged.backward()
    assert logits.shape == (BATCH, int(frames_after(SMALL, jnp.array(TIME))), 5)
    np.testing.assert_allclose(logits, expected.detach(), rtol=close, atol=close)
    assert float(value) == pytest.approx(judged.item(), rel=close)
    holder = TorchDeepSpeech2(SMALL).to(getattr(torch, precision))
    take(holder, texts(jax.tree.map(np.asarray, grads)), texts(nnx.to_pure_dict(after)))
    for ours, theirs in zip(holder.parameters(), judge.parameters(), strict=True):
        largest = max(theirs.grad.abs().max().item(), 1e-2)  # before a norm a bias has none
        assert (ours - theirs.grad).abs().max().item() <= of_gradients * largest
    for ours, theirs in zip(holder.buffers(), judge.buffers(), strict=True):
        if theirs.is_floating_point():
            np.testing.assert_allclose(ours, theirs, rtol=close, atol=close)


def test_padding_is_as_good_as_frames_of_zeros():
    params, stats = drawn(SMALL, "float32")
    graph, _, _ = built(SMALL)
    padded = dataclasses.replace(SMALL, padding=(2, 5))
    x = np.random.default_rng(4).normal(size=(2, TIME - 7, SMALL.bins)).astype(np.float32)
    by_hand = np.pad(x, ((0, 0), (2, 5), (0, 0)))
    found = nnx.merge(built(padded)[0], params, stats)(x, train=False)
    np.testing.assert_array_equal(found, nnx.merge(graph, params, stats)(by_hand, train=False))
    assert found.shape[1] == frames_after(padded, jnp.array(TIME - 7)) == frames_after(SMALL, jnp.array(TIME))
    assert train_flops_per_recording(padded, TIME - 7) == train_flops_per_recording(SMALL, TIME)


def test_what_follows_a_recording_changes_none_of_its_frames():
    params, stats = drawn(SMALL, "float32")
    graph, _, _ = built(SMALL)
    run = jax.jit(functools.partial(nnx.merge(graph, params, stats), train=False))
    x = np.random.default_rng(3).normal(size=(1, TIME, SMALL.bins)).astype(np.float32)
    for frames in (27, 20, 9):
        count = int(frames_after(SMALL, jnp.array(frames)))
        cut = np.where(np.arange(TIME)[:, None] < frames, x, 7)
        np.testing.assert_allclose(run(cut)[:, :count], run(x)[:, :count], rtol=1e-5, atol=1e-6)
        assert count == 0 or np.abs(run(cut) - run(x))[:, count:].max(initial=1) > 1e-3
    assert frames_after(SMALL, jnp.array([0, 1, 8])).tolist() == [0, 0, 1]


def test_flops_are_those_of_the_products():
    """Counted anew from what is traced: loops as often as they run."""
    graph, params, stats = built(SMALL)

    def products(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            name, inputs = equation.primitive.name, [v.aval.shape for v in equation.invars]
            if name == "conv_general_dilated":
                total += 2 * math.prod(inputs[1][:-1]) * math.prod(equation.outvars[0].aval.shape)
            elif name == "dot_general":
                (over, _), _ = equation.params["dimension_numbers"]
                summed = math.prod(inputs[0][d] for d in over)
                total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
            inner = [p for p in equation.params.values() if hasattr(p, "jaxpr")]
            total += equation.params.get("length", 1) * sum(products(p.jaxpr) for p in inner)
        return total

    x = jax.ShapeDtypeStruct((1, TIME, SMALL.bins), jnp.float32)
    traced = jax.make_jaxpr(lambda *state, x: nnx.merge(graph, *state)(x, train=False))(params, stats, x=x)
    assert train_flops_per_recording(SMALL, TIME) == 3 * products(traced.jaxpr)


def test_dtypes_axes_and_sizes_that_cannot_be():
    graph, params, stats = built(SMALL, "bfloat16")
    x = jax.ShapeDtypeStruct((1, TIME, SMALL.bins), jnp.float32)
    logits = jax.eval_shape(lambda *state, x: nnx.merge(graph, *state)(x, train=False), params, stats, x=x)
    assert logits.dtype == np.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    for path, variable in nnx.to_flat_state(params):
        assert len(variable.get_metadata()["axes"]) == len(variable.shape), path
    with pytest.raises(ValueError, match="too large for 20 bins"):
        DeepSpeech2Config(bins=20)
    with pytest.raises(ValueError, match="1 channels, 2 windows and 2 strides"):
        DeepSpeech2Config(channels=(32,))
