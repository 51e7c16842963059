"""Low-rank changes against a transcription of peft's layer in PyTorch: first values, products, dropout."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.precision import POLICIES
from models.low_rank import LowRank

torch = pytest.importorskip("torch", reason="PyTorch judges ours")

INPUTS, RANK, SHAPES = 24, 16, [(4, 8), (2, 8), (2, 8)]
SCALE = 32 / RANK


def ours(policy, dropout_rate=0.1):
    return LowRank(
        (INPUTS,),
        SHAPES,
        axes_in=("embed",),
        axes_out=("heads", "kv"),
        rank=RANK,
        scale=SCALE,
        dropout_rate=dropout_rate,
        policy=POLICIES[policy],
        rngs=nnx.Rngs(1),
    )


class Peft(torch.nn.Module):
    """Transcribed: huggingface/peft, src/peft/tuners/lora/layer.py, LoraLayer and Linear, of a fused product."""

    def __init__(self, inputs, outputs, rank=16, alpha=32, dropout=0.1):
        super().__init__()
        self.lora_dropout = torch.nn.Dropout(p=dropout)
        self.lora_A = torch.nn.Linear(inputs, rank, bias=False)
        self.lora_B = torch.nn.Linear(rank, outputs, bias=False)
        self.scaling = alpha / rank
        torch.nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        torch.nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.lora_B(self.lora_A(self.lora_dropout(x))) * self.scaling


def test_first_values_are_pefts():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = Peft(4096, 8)
    made = LowRank(
        (4096,),
        [(8,)],
        axes_in=("embed",),
        axes_out=("kv",),
        rank=RANK,
        scale=SCALE,
        dropout_rate=0.1,
        policy=POLICIES["float32"],
        rngs=nnx.Rngs(1),
    )
    down, up = np.asarray(made.down[...]), np.asarray(made.up_0[...])
    assert not up.any() and not theirs.lora_B.weight.any()
    # 65,536 numbers each: their quantiles lie within a hundredth of the range of each other.
    shares = np.linspace(0, 1, 21)
    expected = np.quantile(theirs.lora_A.weight.detach().numpy(), shares)
    np.testing.assert_allclose(np.quantile(down, shares), expected, atol=0.02 / math.sqrt(4096))
    assert (made.scale, made.dropout_rate) == (theirs.scaling, theirs.lora_dropout.p)


def test_one_narrow_product_serves_queries_keys_and_values():
    """As `qkv_proj` in one: in float64, without dropout."""
    random = np.random.default_rng(2)
    x = random.normal(size=(3, 5, INPUTS))
    sizes = [math.prod(shape) for shape in SHAPES]
    theirs = Peft(INPUTS, sum(sizes)).double().eval()
    with jax.enable_x64(True):
        made = ours("float64")
        made.down[...] = random.normal(size=made.down.shape)
        for number in range(3):
            up = getattr(made, f"up_{number}")
            up[...] = random.normal(size=up.shape)
        theirs.lora_A.weight.data = torch.tensor(np.asarray(made.down[...]).T.copy())
        ups = [np.asarray(getattr(made, f"up_{n}")[...]).reshape(RANK, -1) for n in range(3)]
        theirs.lora_B.weight.data = torch.tensor(np.concatenate(ups, 1).T.copy())
        found = made(x, None)
    expected = theirs(torch.tensor(x)).detach().split(sizes, -1)
    for mine, other, shape in zip(found, expected, SHAPES, strict=True):
        assert mine.shape == (3, 5, *shape)
        np.testing.assert_allclose(mine, other.reshape(mine.shape), rtol=1e-12, atol=1e-12)


def test_a_tenth_of_the_input_is_dropped_and_the_rest_made_up_for():
    made = ours("float32")
    made.down[...] = np.eye(INPUTS, RANK, dtype=np.float32)
    up = made.up_0
    up[...] = np.eye(RANK, 32, dtype=np.float32).reshape(RANK, *SHAPES[0])
    x = np.ones((2000, INPUTS), np.float32)
    found = np.asarray(made(x, jax.random.key(3))[0]).reshape(2000, -1)[:, :RANK] / SCALE
    np.testing.assert_allclose(np.unique(found), [0, 1 / 0.9], rtol=1e-5)
    assert (found == 0).mean() == pytest.approx(0.1, abs=0.01)
