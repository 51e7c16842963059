"""The reference's parameters by PaddlePaddle's names: imported, they answer as its layers do."""

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from tests import toys
from tests.toys_reviews import VOCABULARY, SmallLSTM, SmallSentiment

E, F, H = 8, 16, 4


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def drawn(shapes):
    random = np.random.default_rng(5)
    return {name: (random.normal(size=shape) / 2).astype(np.float32) for name, shape in shapes.items()}


def windows(t, words):
    """fluid's sequence_conv: rows of `size` words around each, from size // 2 before, times one matrix."""
    x, pooled = t["embedding_0.w_0"][words], []
    for i, size in enumerate((3, 4)):
        padded = np.pad(x, ((size // 2, size), (0, 0)))
        rows = np.stack([padded[p : p + size].ravel() for p in range(len(words))])
        y = elu(rows @ t[f"sequence_conv_{i}.w_0"] + t[f"sequence_conv_{i}.b_0"])
        pooled.append(y.max(0))
    return sum(y @ t[f"fc_0.w_{i}"] for i, y in enumerate(pooled)) + t["fc_0.b_0"]


def dynamic_lstm(t, i, gates):
    """fluid's: gates candidate, input, forget, output; peepholes behind the four biases."""
    weight, bias = t[f"lstm_{i}.w_0"], t[f"lstm_{i}.b_0"][0]
    peep_i, peep_f, peep_o = np.split(bias[4 * H :], 3)
    h, c, out = np.zeros(H), np.zeros(H), [None] * len(gates)
    order = range(len(gates))
    for p in reversed(order) if i % 2 else order:
        a, i_gate, f_gate, o_gate = np.split(gates[p] + h @ weight + bias[: 4 * H], 4)
        before = c
        c = sigmoid(f_gate + peep_f * before) * before + sigmoid(i_gate + peep_i * before) * np.tanh(a)
        h = sigmoid(o_gate + peep_o * c) * np.tanh(c)
        out[p] = h
    return np.stack(out)


def stacked(t, words):
    pair = [t["embedding_0.w_0"][words]]
    for i in range(3):
        gates = sum(x @ t[f"fc_{i}.w_{n}"] for n, x in enumerate(pair)) + t[f"fc_{i}.b_0"]
        pair = [gates, dynamic_lstm(t, i, gates)]
    return sum(x.max(0) @ t[f"fc_3.w_{n}"] for n, x in enumerate(pair)) + t["fc_3.b_0"]


CONVOLUTIONS = {
    "embedding_0.w_0": (VOCABULARY, E),
    **{f"sequence_conv_{i}.w_0": (size * E, F) for i, size in enumerate((3, 4))},
    **{f"sequence_conv_{i}.b_0": (F,) for i in range(2)},
    **{f"fc_0.w_{i}": (F, 2) for i in range(2)},
    "fc_0.b_0": (2,),
}
LSTM = {
    "embedding_0.w_0": (VOCABULARY, E),
    "fc_0.w_0": (E, F),
    **{f"fc_{i}.w_{n}": (size, F) for i in (1, 2) for n, size in enumerate((F, H))},
    **{f"fc_{i}.b_0": (F,) for i in range(3)},
    **{f"lstm_{i}.w_0": (H, 4 * H) for i in range(3)},
    **{f"lstm_{i}.b_0": (1, 7 * H) for i in range(3)},
    **{f"fc_3.w_{n}": (size, 2) for n, size in enumerate((F, H))},
    "fc_3.b_0": (2,),
}


@pytest.mark.parametrize(
    ("cls", "shapes", "judge"), [(SmallSentiment, CONVOLUTIONS, windows), (SmallLSTM, LSTM, stacked)]
)
def test_imported_parameters_answer_as_fluids_layers(cls, shapes, judge):
    tensors = drawn(shapes)
    workload = toys.make(cls)
    state, changes = workload.import_weights(tensors)
    assert changes == {}
    words = np.random.default_rng(0).integers(VOCABULARY, size=7).astype(np.int32)
    logits = workload.model(state)(words[None], np.array([7], np.int32))[0]
    np.testing.assert_allclose(logits, judge(tensors, words), rtol=1e-4, atol=1e-5)


def test_parameters_of_the_other_network_are_refused():
    with pytest.raises(UserError, match="sequence_conv_0"):
        toys.make(SmallSentiment).import_weights(drawn(LSTM))
