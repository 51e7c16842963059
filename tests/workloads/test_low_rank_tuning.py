"""Low-rank changes: what is trained and what is not, where it lies, and what it begins with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.precision import POLICIES
from mlperf_jax.weights import safetensors_file
from models.decoder import DecoderConfig
from tests import agreement, toys
from tests.toys_language import SmallTuning
from tests.weights.test_llama_weights import published

LAYOUTS = agreement.Layouts(lambda strategy: toys.make(SmallTuning, "float64"))


def test_ten_steps_under_fsdp_agree_with_one_device():
    """With dropout; what is frozen stays as it was."""
    state = LAYOUTS.agree("fsdp")
    losses, _ = LAYOUTS.trained(None)
    assert losses[-1] < losses[0]
    for before, after in zip(*map(jax.tree.leaves, (LAYOUTS.start["frozen"], state["frozen"])), strict=True):
        np.testing.assert_array_equal(before, after)
    saved = LAYOUTS.engine(None).saved(state)
    assert "frozen" not in saved and "low_rank_in" in saved["params"]["layers"]["attention"]


def test_of_llama_2_70b_few_parameters_are_trained():
    """Gradients and the optimizer's state are of these alone, and the others are half as wide."""
    config = SmallTuning.get_config("mini")
    config.model = {
        name: value
        for name, value in vars(DecoderConfig.llama2_70b()).items()
        if name not in ("attention", "remat")
    }
    config.data.length = 8192
    workload = SmallTuning(config, POLICIES["bfloat16"], data_dir=None)
    state = jax.eval_shape(workload.init, jax.ShapeDtypeStruct((), np.uint32))
    sizes = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in state.items()}
    assert sizes["params"] == 44_564_480 and sizes["frozen"] == 68_976_648_192
    assert 2 * sizes["params"] <= sizes["opt_state"] < 2 * sizes["params"] + 10
    assert {x.dtype for x in jax.tree.leaves(state["frozen"])} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(state["params"])} == {jnp.dtype(jnp.float32)}


@functools.cache
def base():
    """Frozen parameters of another seed, as published."""
    workload = toys.make(SmallTuning)
    return workload, jax.device_get(jax.jit(workload.init)(np.uint32(7)))["frozen"]


def test_it_begins_with_the_published_weights(tmp_path):
    workload, frozen = base()
    path = tmp_path / "base.safetensors"
    safetensors_file.write(path, published(frozen, workload.model_config))
    tuned = toys.make(SmallTuning, base_weights=str(path))
    struct = {"frozen": jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), frozen)}
    found = tuned.frozen_state(struct, seed=1)["frozen"]
    for ours, theirs in zip(*map(jax.tree.leaves, (found, frozen)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert tuned.frozen_source == str(path)


def test_real_data_asks_for_weights():
    class Real(SmallTuning):
        made_up_data = False

    for name, words in (
        ("", "no file of weights to tune"),
        ("llama.safetensors", r"no /nonexistent/weights/llama"),
    ):
        with pytest.raises(UserError, match=words):
            toys.make(Real, base_weights=name).check_data()
