"""Recurrent layers, LSTM and GRU, with the equations, gates and biases of PyTorch's modules.

What inputs add to the gates is one product for all positions, outside of the loop; inside are the product with the
state before and the cell. The backward loop likewise leaves the kernels' gradients to one product each.

    scan     a loop of jax: everywhere, in every dtype and layout
    cudnn    cuDNN's LSTM, through `jax.experimental.rnn`, on one NVIDIA GPU in float32

Both give the same numbers, up to rounding. What an implementation cannot do it refuses with a ValueError; "auto"
takes the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import rnn
from jax.nn import initializers
from jax.typing import DTypeLike

from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.layout import constrain
from mlperf_jax.platform import compiled_for
from mlperf_jax.precision import Policy

CHOICES = ("auto", "scan", "cudnn")

_FORGET = 1  # which of an LSTM's gates forgets

State = tuple[jax.Array, ...]
"""What is carried from position to position, each [B, H] and at least float32; the output is the first."""

Gates = tuple[jax.Array, ...]
"""What is added to each gate, [..., B, H]. Cut out of one array in a loop, XLA:CPU reads numbers one at a time."""

Cell = Callable[[Gates, Gates, State], State]
"""(what the input adds to the gates, what the state adds, state before) -> state."""


def choose(choice: str, *, dtype: DTypeLike, platform: str = "") -> str:
    """The implementation of an LSTM that one of `CHOICES` means.

    Args:
        choice: one of `CHOICES`.
        dtype: of inputs and parameters.
        platform: by default the one in use.

    Raises:
        ValueError: there is no such choice, or it cannot do this.
    """
    if choice not in CHOICES:
        raise ValueError(f"lstm {choice!r} is none of {', '.join(CHOICES)}")
    refusal = _refusal(jnp.dtype(dtype), platform or compiled_for() or jax.default_backend())
    if choice == "cudnn" and refusal:
        raise ValueError(f"lstm 'cudnn' {refusal}; use 'auto'")
    return "scan" if choice == "scan" or refusal else "cudnn"


def _refusal(dtype: np.dtype, platform: str) -> str | None:
    """Why cuDNN's cannot do it, or None."""
    layout = layouts.active()
    if platform != "gpu":
        return f"is not there on {platform}"
    if jax.default_backend() != "gpu":
        return "asks the GPU itself for its sizes, so it cannot be compiled without one"
    if dtype != jnp.float32:
        return f"computes in float32, not in {dtype}"
    if layout is not None and layout.mesh.size > 1:
        return f"runs on one device, not on {layout.mesh.size}"
    return None


def lstm_cell(inputs: Gates, recurrent: Gates, state: State) -> State:
    """Hochreiter and Schmidhuber's cell with forget gates: sums' gates i, f, g, o; state h, c."""
    dtype = state[1].dtype
    i, f, g, o = (x.astype(dtype) + y.astype(dtype) for x, y in zip(inputs, recurrent, strict=True))
    c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru_cell(inputs: Gates, recurrent: Gates, state: State) -> State:
    """Cho et al.'s cell (arXiv:1406.1078), reset after the product: gates r, z, n; state h."""
    (h,) = state
    x, y = ([gate.astype(h.dtype) for gate in gates] for gates in (inputs, recurrent))
    r, z = jax.nn.sigmoid(x[0] + y[0]), jax.nn.sigmoid(x[1] + y[1])
    n = jnp.tanh(x[2] + r * y[2])
    return (n + z * (h - n),)


def _apart(gates: jax.Array) -> Gates:
    """Of [..., G, H] each gate's [..., H]."""
    return tuple(gates[..., n, :] for n in range(gates.shape[-2]))


def _step(cell: Cell, inputs: Gates, recurrent: Gates, state: State, real: jax.Array | None) -> State:
    """`cell`; a row [B] that is not `real` keeps its state."""
    new = cell(inputs, recurrent, state)
    if real is None:
        return new
    return tuple(jnp.where(real[:, None], a, b) for a, b in zip(new, state, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def recurrence(
    cell: Cell,
    reverse: bool,
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    start: State,
    real: jax.Array | None,
    anew: jax.Array | None,
) -> State:
    """The states after every position.

    Args:
        cell: `lstm_cell` or `gru_cell`.
        reverse: whether the last position is the first.
        inputs: [T, B, G, H], what the inputs add to the gates.
        kernel: [H, G, H], of the state before.
        bias: [G, H], added to that product.
        start: before the first position, each [B, H].
        real: [T, B] bool, False where a row is padding; None for nowhere.
        anew: [T, B] bool, True where the state before is forgotten, as where a sentence begins; None for nowhere.

    Returns:
        The states, each [T, B, H]; of padding as they were before it.
    """
    return _forward(cell, reverse, inputs, kernel, bias, start, real, anew)[0]


def _forward(
    cell: Cell,
    reverse: bool,
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    start: State,
    real: jax.Array | None,
    anew: jax.Array | None,
) -> tuple[State, Any]:
    def body(state: State, entries: Any) -> tuple[State, Any]:
        x, is_real, begins = entries
        state = _forgotten(state, begins)
        recurrent = jnp.einsum("bh,hgk->bgk", state[0].astype(kernel.dtype), kernel) + bias
        state = _step(cell, x, _apart(recurrent), state, is_real)
        return state, (state, recurrent)

    gates = _apart(inputs)
    _, (states, recurrent) = jax.lax.scan(body, start, (gates, real, anew), reverse=reverse)
    return states, (gates, kernel, start, real, anew, states, _apart(recurrent))


def _backward(cell: Cell, reverse: bool, kept: Any, gradients: State) -> tuple[Any, ...]:
    """The loop gives the gradients of all gates; those of kernel and bias are sums over positions after it."""
    inputs, kernel, start, real, anew, states, recurrent = kept
    before = tuple(_before(s, all_of, reverse) for s, all_of in zip(start, states, strict=True))
    before = _forgotten(before, anew)
    turned = kernel.transpose(1, 2, 0)

    def body(later: State, entries: Any) -> tuple[State, Any]:
        own, x, r, state, is_real, begins = entries
        _, pull = jax.vjp(lambda x, r, state: _step(cell, x, r, state, is_real), x, r, state)
        of_x, of_r, (of_h, *others) = pull(tuple(a + b for a, b in zip(later, own, strict=True)))
        of_x, of_r = jnp.stack(of_x, 1), jnp.stack(of_r, 1)
        of_h = of_h + jnp.einsum("bgk,gkh->bh", of_r, turned).astype(of_h.dtype)
        return _forgotten((of_h, *others), begins), (of_x, of_r)

    zeros = tuple(jnp.zeros_like(s) for s in start)
    of_start, (of_inputs, of_recurrent) = jax.lax.scan(
        body, zeros, (gradients, inputs, recurrent, before, real, anew), reverse=not reverse
    )
    of_kernel = jnp.einsum("tbh,tbgk->hgk", before[0].astype(kernel.dtype), of_recurrent)
    return of_inputs, of_kernel, of_recurrent.sum((0, 1)), of_start, None, None


recurrence.defvjp(_forward, _backward)


def _forgotten(state: State, begins: jax.Array | None) -> State:
    """Zeros instead of [..., B, H] where a row [..., B] begins anew."""
    if begins is None:
        return state
    return tuple(jnp.where(begins[..., None], jnp.zeros((), s.dtype), s) for s in state)


def _before(start: jax.Array, states: jax.Array, reverse: bool) -> jax.Array:
    """The state before each position [T, B, H], of the states after them."""
    parts = (states[1:], start[None]) if reverse else (start[None], states[:-1])
    return jnp.concatenate(parts)


class _Direction(nnx.Module):
    """The parameters of one direction; two biases, as PyTorch has them, of which the recurrent starts as zero."""

    def __init__(
        self,
        features_in: int,
        features: int,
        gates: int,
        *,
        init: initializers.Initializer,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        dtype = policy.param_dtype
        self.kernel = nnx.Param(
            init(rngs.params(), (features_in, gates, features), dtype), axes=("embed", None, "mlp")
        )
        self.recurrent = nnx.Param(
            init(rngs.params(), (features, gates, features), dtype), axes=(None, None, "mlp")
        )
        self.bias = nnx.Param(init(rngs.params(), (gates, features), dtype), axes=(None, "mlp"))
        self.bias_recurrent = nnx.Param(jnp.zeros((gates, features), dtype), axes=(None, "mlp"))
        self.dtype = policy.compute_dtype

    def parameters(self) -> list[jax.Array]:
        """Kernel, recurrent kernel, bias and recurrent bias in the compute dtype."""
        every = (self.kernel, self.recurrent, self.bias, self.bias_recurrent)
        return [parameter[...].astype(self.dtype) for parameter in every]


class Recurrent(nnx.Module):
    """A recurrent layer over sequences, in one direction or both; `LSTM` and `GRU` say with which cell."""

    cell: Cell
    gates: int
    states: int

    def __init__(
        self,
        features_in: int,
        features: int,
        *,
        bidirectional: bool = False,
        init: initializers.Initializer | None = None,
        choice: str = "auto",
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the layer.

        Args:
            features_in: I.
            features: H, of each direction.
            bidirectional: whether a second layer reads from the end, whose outputs follow the first's.
            init: draws kernels and input biases; by default uniform within H**-0.5.
            choice: one of `CHOICES`.
            policy: dtypes; the state is at least float32.
            rngs: holds the stream "params".
        """
        draw = init or uniform(features**-0.5)
        self.directions = nnx.List(
            [
                _Direction(features_in, features, self.gates, init=draw, policy=policy, rngs=rngs)
                for _ in range(1 + bidirectional)
            ]
        )
        self.features = features
        self.choice = choice
        self.dtype = policy.compute_dtype
        self.state_dtype = jnp.promote_types(policy.compute_dtype, jnp.float32)

    def start(self, batch: int) -> list[State]:
        """The state of zeros before the first position, for each direction."""
        zeros = jnp.zeros((batch, self.features), self.state_dtype)
        return [(zeros,) * self.states for _ in self.directions]

    def __call__(
        self,
        x: jax.Array,
        lengths: jax.Array | None = None,
        start: Sequence[State] | None = None,
        *,
        segments: jax.Array | None = None,
    ) -> tuple[jax.Array, list[State]]:
        """Reads sequences.

        Args:
            x: [B, T, I].
            lengths: [B] int, what of each row is no padding; None for all.
            start: each direction's state before; zeros by default.
            segments: [B, T] int, in place of lengths, of rows that hold several sequences: each is read from a
                state of zeros. They are numbered from 1; 0 is padding.

        Returns:
            [B, T, H] or [B, T, 2 H] in the compute dtype, zeros where there is padding, and each direction's state
            after it (of the second: after the first position).
        """
        x = x.astype(self.dtype)
        start = self.start(len(x)) if start is None else start
        if segments is None and self._implementation() == "cudnn":
            return self._cudnn(x, lengths, start)
        real = None if lengths is None else jnp.arange(x.shape[1]) < lengths[:, None]
        real = real if segments is None else segments > 0
        outputs, ends = [], []
        for direction, before, reverse in zip(self.directions, start, (False, True), strict=False):
            anew = None if segments is None else _begins(segments, reverse)
            states = self._read(direction, x, before, real, anew, reverse)
            outputs.append(states[0].astype(self.dtype))
            ends.append(tuple(s[0 if reverse else -1] for s in states))
        y = jnp.concatenate(outputs, -1).swapaxes(0, 1)
        return _without_padding(y, real), ends

    def _read(
        self,
        direction: _Direction,
        x: jax.Array,
        start: State,
        real: jax.Array | None,
        anew: jax.Array | None,
        reverse: bool,
    ) -> State:
        """`recurrence` over x [B, T, I]."""
        kernel, recurrent, bias, bias_recurrent = direction.parameters()
        inputs = jnp.einsum("tbi,igh->tbgh", x.swapaxes(0, 1), kernel) + bias
        inputs = constrain(inputs, None, "batch", None, "mlp")
        by_time = (None if mask is None else mask.T for mask in (real, anew))
        return recurrence(type(self).cell, reverse, inputs, recurrent, bias_recurrent, start, *by_time)

    def step(self, x: jax.Array, state: State) -> tuple[jax.Array, State]:
        """One position of the first direction: maps [B, I] to [B, H], and the state before to that after."""
        kernel, recurrent, bias, bias_recurrent = self.directions[0].parameters()
        inputs = jnp.einsum("bi,igh->bgh", x.astype(self.dtype), kernel) + bias
        of_state = jnp.einsum("bh,hgk->bgk", state[0].astype(self.dtype), recurrent) + bias_recurrent
        state = type(self).cell(_apart(inputs), _apart(of_state), state)
        return state[0].astype(self.dtype), state

    def _implementation(self) -> str:
        return "scan"

    def _cudnn(
        self, x: jax.Array, lengths: jax.Array | None, start: Sequence[State]
    ) -> tuple[jax.Array, list[State]]:
        raise NotImplementedError


class GRU(Recurrent):
    """`torch.nn.GRU` of one layer."""

    cell = staticmethod(gru_cell)
    gates, states = 3, 1


class LSTM(Recurrent):
    """`torch.nn.LSTM` of one layer."""

    cell = staticmethod(lstm_cell)
    gates, states = 4, 2

    def __init__(self, features_in: int, features: int, *, forget_bias: float = 0.0, **numbers: Any) -> None:
        """Builds the layer; see `Recurrent`.

        Args:
            features_in, features, numbers: as there.
            forget_bias: what is added to the forget gates' bias at first.
        """
        super().__init__(features_in, features, **numbers)
        if forget_bias:
            for direction in self.directions:
                bias = direction.bias[...]
                direction.bias.set_value(bias.at[_FORGET].add(forget_bias))

    def _implementation(self) -> str:
        return choose(self.choice, dtype=self.dtype)

    def _cudnn(
        self, x: jax.Array, lengths: jax.Array | None, start: Sequence[State]
    ) -> tuple[jax.Array, list[State]]:
        (batch, length, features_in), two = x.shape, len(self.directions) == 2
        kernels, biases = [], []
        for direction in self.directions:
            kernel, recurrent, *both = direction.parameters()
            kernels += [w.transpose(1, 2, 0).reshape(-1) for w in (kernel, recurrent)]
            biases += [b.reshape(-1) for b in both]
        h, c = (jnp.stack(states) for states in zip(*start, strict=True))
        ends = jnp.full(batch, length) if lengths is None else lengths
        y, h, c = rnn.lstm(
            x,
            h,
            c,
            jnp.concatenate(kernels + biases),
            ends.astype(jnp.int32),
            features_in,
            self.features,
            1,
            0.0,
            two,
        )
        real = None if lengths is None else jnp.arange(length) < lengths[:, None]
        return _without_padding(y, real), list(zip(h, c, strict=True))


def uniform(scale: float) -> initializers.Initializer:
    """Draws from [-scale, scale)."""

    def draw(
        key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -scale, scale)

    return draw


def _begins(segments: jax.Array, reverse: bool) -> jax.Array:
    """Where segments [B, T] begin, read from either end: bool."""
    beside = ((0, 0), (0, 1)) if reverse else ((0, 0), (1, 0))
    padded = jnp.pad(segments, beside, constant_values=-1)
    return segments != (padded[:, 1:] if reverse else padded[:, :-1])


def _without_padding(y: jax.Array, real: jax.Array | None) -> jax.Array:
    """[B, T, F] with zeros where it is not real [B, T]."""
    return y if real is None else jnp.where(real[..., None], y, jnp.zeros((), y.dtype))
