"""RNN-T: sizes by name, parity with PyTorch, parts of the lattice, padding, dropout."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.precision import POLICIES
from mlperf_jax.speech.transducer import transducer_loss
from models.rnnt import RNNT, RNNTConfig, train_flops_per_utterance

SIZES = dict(
    features=6,
    classes=9,
    encoder_width=8,
    layers_before=1,
    stack=2,
    layers_after=2,
    prediction_width=5,
    prediction_layers=1,
    joint_width=7,
    joint_frames=3,
)
VARIANT = dict(classes=29, prediction_width=320)


@functools.cache
def small(precision="float32", **numbers):
    """A model whose parameters are not at their first values, and these as dicts."""
    with jax.enable_x64(precision == "float64"):
        config = RNNTConfig(**(SIZES | numbers))
        model = nnx.jit(lambda: RNNT(config, policy=POLICIES[precision], rngs=nnx.Rngs(3)))()
        graph, state = nnx.split(model, nnx.Param)
        random = np.random.default_rng(1)
        params = jax.tree.map(
            lambda x: np.asarray(x) + 0.3 * random.normal(size=x.shape).astype(x.dtype),
            nnx.to_pure_dict(state),
        )
        return graph, params


def graph_of(**numbers):
    """The structure alone: parameters of `small` fit into it."""
    config = RNNTConfig(**(SIZES | numbers))
    return nnx.split(nnx.eval_shape(lambda: RNNT(config, policy=POLICIES["float32"], rngs=nnx.Rngs(3))))[0]


@functools.cache
def all_of(graph):
    """Computes log probabilities, losses and gradients of `params`."""

    def loss(params, batch, key):
        model = nnx.merge(graph, params)
        blank, label, frames = model(batch["features"], batch["frames"], batch["symbols"], key=key)
        losses = transducer_loss(blank, label, frames, batch["counts"])
        return losses.mean(), (blank, label, frames, losses)

    def run(params, batch, key=None):
        (_, found), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
        return found, grads

    return jax.jit(run)


def batch_of(dtype="float32"):
    random = np.random.default_rng(0)
    frames, counts = np.array([11, 6, 1, 3]), np.array([4, 0, 2, 3])
    features = random.normal(size=(4, 11, 6)).astype(dtype) * (np.arange(11) < frames[:, None])[..., None]
    symbols = random.integers(0, 8, (4, 4)) * (np.arange(4) < counts[:, None])
    return {"features": features, "frames": frames, "symbols": symbols, "counts": counts}


def sizes_of(config):
    model = nnx.eval_shape(lambda: RNNT(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}


def test_the_closed_model_has_the_references_parameters():
    def lstm(features, width):  # by hand: two kernels and PyTorch's two biases
        return 4 * width * (features + width + 2)

    encoder = {"before": lstm(240, 1024) + lstm(1024, 1024), "after": lstm(2048, 1024) + 2 * lstm(1024, 1024)}
    assert sizes_of(RNNTConfig()) == encoder | {
        "embedding": 1023 * 512,
        "prediction": 2 * lstm(512, 512),
        "of_encoder": 1024 * 512 + 512,
        "of_prediction": 512 * 512 + 512,
        "classes": 512 * 1024 + 1024,
    }
    assert sum(sizes_of(RNNTConfig()).values()) == 49_006_080
    # The checkpoint of MLPerf Inference has one bias where ours has two.
    assert sum(sizes_of(RNNTConfig(**VARIANT)).values()) - 512 == 45_323_037


def test_fresh_layers_begin_as_the_references_do():
    config = RNNTConfig(**SIZES, init_scale=0.5, forget_bias=1.0)
    model = nnx.jit(lambda: RNNT(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))()
    for layer in (*model.before, *model.after, *model.prediction):
        (direction,) = layer.directions
        width = direction.recurrent.shape[0]
        np.testing.assert_array_equal(direction.bias[...][1], np.full(width, 0.5))
        assert not np.asarray(direction.bias_recurrent[...]).any()
        largest = np.abs(direction.recurrent[...]).max()
        assert 0.35 * width**-0.5 < largest <= 0.5 * width**-0.5


@functools.cache
def judged(precision):
    """Our parameters in PyTorch's model, a batch as its tensors, and its answers."""
    torch = pytest.importorskip("torch", reason="PyTorch judges ours")
    from benchmarks.peers.rnnt import TorchRNNT, take_over

    dtype = {"float32": torch.float32, "float64": torch.float64}[precision]
    judge = TorchRNNT(**SIZES).to(dtype)
    take_over(judge, small(precision)[1])
    batch = batch_of(precision)
    tensors = {name: torch.tensor(value) for name, value in batch.items()}
    logits, lengths = judge(*(tensors[name] for name in ("features", "frames", "symbols")))
    return judge, batch, tensors, logits, lengths


def same(blank, label, frames, precision, limit):
    """Holds log probabilities against PyTorch's."""
    _, batch, _, logits, lengths = judged(precision)
    assert frames.tolist() == lengths.tolist() == [6, 3, 1, 2]
    logs = logits.detach().log_softmax(-1).numpy()
    for n in range(4):
        t, u = frames[n], batch["counts"][n]
        expected = logs[n, :t, : u + 1]
        spoken = np.take_along_axis(expected[:, :u], batch["symbols"][n, :u][None, :, None], 2)[..., 0]
        np.testing.assert_allclose(blank[n, :t, : u + 1], expected[..., -1], atol=limit)
        np.testing.assert_allclose(label[n, :t, :u], spoken, atol=limit)


def test_log_probabilities_are_pytorchs():
    graph, params = small()
    batch = judged("float32")[1]

    @jax.jit
    def run(params, features, frames, symbols):
        return nnx.merge(graph, params)(features, frames, symbols)

    with jax.default_matmul_precision("highest"):
        found = run(params, batch["features"], batch["frames"], batch["symbols"])
    same(*jax.device_get(found), "float32", 1e-4)


def test_losses_and_gradients_are_pytorchs_in_float64():
    from benchmarks.peers.rnnt import TorchRNNT, loss_of, take_over

    judge, batch, tensors, logits, lengths = judged("float64")
    graph, params = small("float64")
    with jax.enable_x64(True):
        (blank, label, frames, losses), grads = jax.device_get(all_of(graph)(params, batch))
    same(blank, label, frames, "float64", 1e-10)
    expected = loss_of(logits, tensors["symbols"], lengths, tensors["counts"])
    expected.mean().backward()
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-10)
    holder = TorchRNNT(**SIZES).double()
    take_over(holder, grads)
    for ours, theirs in zip(holder.parameters(), judge.parameters(), strict=True):
        assert (ours - theirs.grad).abs().max() <= 1e-9 * max(theirs.grad.abs().max(), 1e-3)


@functools.cache
def losses_of(graph):
    """Computes losses, dropping with a key."""

    def run(params, batch, key=None):
        model = nnx.merge(graph, params)
        blank, label, frames = model(batch["features"], batch["frames"], batch["symbols"], key=key)
        return transducer_loss(blank, label, frames, batch["counts"])

    return jax.jit(run)


def test_frames_at_a_time_are_as_good_as_all():
    params = small()[1]
    random = np.random.default_rng(0)
    encoded, predicted = (random.normal(size=(2, n, 7)).astype(np.float32) for n in (11, 5))
    symbols = random.integers(0, 8, (2, 4))
    found = []
    for graph in (graph_of(joint_frames=frames) for frames in (3, 16)):

        def loss(params, *args, graph=graph):
            blank, label = nnx.merge(graph, params).log_probabilities(*args)
            return (blank * blank).sum() + (label * label).sum(), (blank, label)

        gradients = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
        found.append(jax.tree.leaves(gradients(params, encoded, predicted, symbols)))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_utterance_is_the_same_in_any_bucket():
    graph, params = small()
    batch = batch_of()
    wide = batch | {
        "features": np.pad(batch["features"], ((0, 0), (0, 6), (0, 0)), constant_values=7.0),
        "symbols": np.pad(batch["symbols"], ((0, 0), (0, 3)), constant_values=5),
    }
    run = losses_of(graph)
    np.testing.assert_allclose(run(params, wide), run(params, batch), rtol=1e-5)


def test_dropout_is_drawn_anew_by_key_and_keeps_the_mean():
    rates = dict(encoder_dropout=0.1, prediction_dropout=0.3, joint_dropout=0.3)
    graph, params = graph_of(**rates), small()[1]
    batch, run = batch_of(), losses_of(graph)
    drawn = [run(params, batch, jax.random.key(n)) for n in range(2)]
    again = run(params, batch, jax.random.key(0))
    assert np.array_equal(drawn[0], again) and not np.allclose(drawn[0], drawn[1])
    assert np.isfinite(drawn).all()


def test_the_lattice_needs_the_memory_of_some_frames():
    """At closed sizes all classes of an utterance of 16.7 s and 125 symbols would be 0.14 GB."""
    frames, symbols, joint, classes = 279, 125, 512, 1024

    def memory(joint_frames):
        config = RNNTConfig(
            features=8, encoder_width=8, layers_before=1, layers_after=1, joint_frames=joint_frames
        )
        graph, params = nnx.split(
            nnx.eval_shape(lambda: RNNT(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0))), nnx.Param
        )

        def loss(params, *args):
            blank, label = nnx.merge(graph, params).log_probabilities(*args)
            return (blank.sum() + label.sum()) / 1000

        shapes = [(2, frames, joint), (2, symbols + 1, joint)]
        args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        args.append(jax.ShapeDtypeStruct((2, symbols), jnp.int32))
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(params, *args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    of_all = 2 * frames * (symbols + 1) * classes * 4
    assert memory(16) < 0.35 * of_all


def test_flops_are_counted_by_hand():
    config = RNNTConfig(**(SIZES | dict(layers_before=2, layers_after=3, prediction_layers=2)))
    encoder = 10 * 4 * 8 * ((6 + 8) + (8 + 8)) + 5 * (4 * 8 * ((16 + 8) + 2 * (8 + 8)) + 8 * 7)
    prediction = 4 * (4 * 5 * 2 * (5 + 5) + 5 * 7)
    expected = 6 * (encoder + prediction + 5 * 4 * 7 * 9)
    assert math.isclose(train_flops_per_utterance(config, 10, 3), expected)
