"""LSTM and GRU: PyTorch's numbers and gradients in both directions and under lengths, and cuDNN's order of weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import rnn

from mlperf_jax.precision import POLICIES
from models import lstm
from models.lstm import GRU, LSTM

B, T, F, H = 3, 7, 5, 4


def drawn(kind, two, policy="float64"):
    layer = kind(F, H, bidirectional=two, policy=POLICIES[policy], rngs=nnx.Rngs(0))
    random = np.random.default_rng(1)
    for _, parameter in nnx.iter_graph(layer):
        if isinstance(parameter, nnx.Param):
            parameter[...] = random.normal(size=parameter[...].shape)
    return layer


def judge(torch, layer, gru, two):
    """The same layer in PyTorch, and which array of ours is which of its."""
    module = (torch.nn.GRU if gru else torch.nn.LSTM)(F, H, batch_first=True, bidirectional=two).double()
    pairs = []
    for direction, ending in zip(layer.directions, ("", "_reverse"), strict=False):
        for name in ("kernel", "recurrent", "bias", "bias_recurrent"):
            theirs = {"kernel": "weight_ih", "recurrent": "weight_hh", "bias": "bias_ih"}.get(name, "bias_hh")
            parameter = getattr(module, f"{theirs}_l0{ending}")
            pairs.append((getattr(direction, name), parameter))
            with torch.no_grad():
                parameter.copy_(torch.tensor(turned(np.asarray(getattr(direction, name)[...]))))
    return module, pairs


def turned(array):
    """[I, G, H] as PyTorch's [G H, I]; [G, H] as its [G H]."""
    return array.transpose(1, 2, 0).reshape(-1, array.shape[0]) if array.ndim == 3 else array.reshape(-1)


@pytest.mark.parametrize("two", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("kind", [LSTM, GRU])
@pytest.mark.parametrize("lengths", [None, (7, 2, 4)], ids=["whole", "lengths"])
def test_numbers_and_gradients_are_pytorchs(kind, two, lengths):
    torch = pytest.importorskip("torch", reason="PyTorch judges ours")
    random = np.random.default_rng(2)
    x, weight = random.normal(size=(B, T, F)), random.normal(size=(B, T, H * (1 + two)))
    first, last = random.normal(size=(2, kind.states, 1 + two, B, H))
    with jax.enable_x64(True):
        layer = drawn(kind, two)
        graph, params = nnx.split(layer)

        def loss(params, x, first):
            start = [tuple(first[:, d]) for d in range(1 + two)]
            y, ends = nnx.merge(graph, params)(x, None if lengths is None else jnp.array(lengths), start)
            ends = jnp.stack([jnp.stack(states) for states in zip(*ends, strict=True)])
            return (y * weight).sum() + (ends * last).sum(), (y, ends)

        (_, (y, ends)), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(params, x, first)
    module, pairs = judge(torch, layer, kind is GRU, two)
    there, started = torch.tensor(x, requires_grad=True), torch.tensor(first, requires_grad=True)
    inputs = there
    if lengths:
        inputs = torch.nn.utils.rnn.pack_padded_sequence(
            there, torch.tensor(lengths), batch_first=True, enforce_sorted=False
        )
    expected, end = module(inputs, started[0] if kind is GRU else tuple(started))
    if lengths:
        expected, _ = torch.nn.utils.rnn.pad_packed_sequence(expected, batch_first=True, total_length=T)
    end = end[None] if kind is GRU else torch.stack(end)
    ((expected * torch.tensor(weight)).sum() + (end * torch.tensor(last)).sum()).backward()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)
    close(y, expected.detach().numpy())
    close(ends, end.detach().numpy())
    close(grads[1], there.grad.numpy())
    close(grads[2], started.grad.numpy())
    nnx.update(layer, grads[0])
    for ours, theirs in pairs:
        close(turned(np.asarray(ours[...])), theirs.grad.numpy())


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_step_by_step_is_as_the_whole(kind):
    layer = drawn(kind, False, "float32")
    x = jnp.asarray(np.random.default_rng(3).normal(size=(B, T, F)), jnp.float32)
    expected, ends = layer(x)
    (state,) = layer.start(B)
    for t in range(T):
        y, state = layer.step(x[:, t], state)
        np.testing.assert_allclose(y, expected[:, t], rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(state, ends[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("two", [False, True], ids=["one way", "both ways"])
def test_cudnn_is_handed_what_its_reference_understands(two, monkeypatch):
    """jax's own plain LSTM stands in for cuDNN's: the same weights in the same order, the same lengths."""

    def plain(x, h, c, weights, lengths, *sizes):
        unpacked = rnn.unpack_lstm_weights(weights, *sizes[:3], sizes[4])
        return rnn.lstm_ref(x, h, c, *unpacked, lengths, *sizes)

    layer = drawn(LSTM, two, "float32")
    random = np.random.default_rng(4)
    x, lengths = jnp.asarray(random.normal(size=(B, T, F)), jnp.float32), jnp.array([3, 7, 5])
    start = [tuple(jnp.asarray(random.normal(size=(2, B, H)), jnp.float32)) for _ in range(1 + two)]
    expected = layer(x, lengths, start)
    monkeypatch.setattr(rnn, "lstm", plain)
    monkeypatch.setattr(lstm, "choose", lambda choice, dtype: "cudnn")
    found = layer(x, lengths, start)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_can_be_chosen():
    assert lstm.choose("auto", dtype=jnp.float32, platform="cpu") == "scan"
    with pytest.raises(ValueError, match="lstm 'cudnn' is not there on cpu; use 'auto'"):
        lstm.choose("cudnn", dtype=jnp.float32, platform="cpu")
    with pytest.raises(ValueError, match="cannot be compiled without one"):
        lstm.choose("cudnn", dtype=jnp.float32, platform="gpu")
    with pytest.raises(ValueError, match="'fast' is none of auto, scan, cudnn"):
        lstm.choose("fast", dtype=jnp.float32)


def test_dtypes_of_the_mixed_policy():
    def run(x):
        return LSTM(F, H, policy=POLICIES["bfloat16"], rngs=nnx.Rngs(0))(x)

    y, ((h, c),) = jax.eval_shape(run, jnp.zeros((B, T, F)))
    assert y.dtype == jnp.bfloat16 and h.dtype == c.dtype == jnp.float32


@pytest.mark.parametrize("two", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_packed_rows_are_as_good_as_sequences_apart(kind, two):
    segments = np.array([[1, 1, 1, 2, 3, 3, 0], [1, 1, 1, 1, 1, 1, 1], [1, 2, 2, 0, 0, 0, 0]])
    random = np.random.default_rng(5)
    with jax.enable_x64(True):
        graph, params = nnx.split(drawn(kind, two))
        x, weight = random.normal(size=(B, T, F)), random.normal(size=(B, T, H * (1 + two)))

        def packed(params):
            y, _ = nnx.merge(graph, params)(x, segments=jnp.array(segments))
            return (y * weight).sum(), y

        def apart(params):
            y = jnp.zeros((B, T, H * (1 + two)))
            for row in range(B):
                for segment in range(1, int(segments[row].max()) + 1):
                    (where,) = np.nonzero(segments[row] == segment)
                    y = y.at[row, where].set(nnx.merge(graph, params)(x[row : row + 1, where])[0][0])
            return (y * weight).sum(), y

        found, expected = (jax.jit(jax.grad(f, has_aux=True))(params) for f in (packed, apart))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_forget_gates_may_begin_open():
    plain, opened = (
        LSTM(F, H, forget_bias=b, bidirectional=True, policy=POLICIES["float32"], rngs=nnx.Rngs(0))
        for b in (0.0, 1.0)
    )
    for a, b in zip(plain.directions, opened.directions, strict=True):
        np.testing.assert_allclose(
            b.bias[...] - a.bias[...], np.array([0, 1, 0, 0])[:, None] * np.ones(H), atol=1e-6
        )
        np.testing.assert_array_equal(a.kernel[...], b.kernel[...])
