"""What is asked of language models that are served by the token, and how well their weights foresee what was to come."""

import jax
import numpy as np
import pytest

from mlperf_jax.parallel.mesh import single_device_layout
from mlperf_jax.weights import lazy
from tests import toys
from tests.toys_language import LENGTH, SmallTelling, SmallTellingTuned
from tests.weights.test_llama_weights import published


def test_given_is_what_comes_before_what_is_asked_for():
    """Of rows that say what that is; of others as many tokens as the config has it."""
    tuned, plain = toys.make(SmallTellingTuned), toys.make(SmallTelling)
    rows = tuned.dataset.read_eval(np.arange(tuned.num_samples), ["tokens", "told"])
    for index, (tokens, told) in enumerate(zip(rows["tokens"], rows["told"], strict=True)):
        prompt, true = tuned._sample(index)
        assert prompt.tolist() == tokens[: np.flatnonzero(told)[0]].tolist()
        assert true.tolist() == tokens[told > 0].tolist()
        assert tuned.request(index).prompt.tolist() == prompt.tolist()
    row = plain.dataset.read_eval(np.arange(3), ["tokens"])["tokens"][2]
    prompt, true = plain._sample(2)
    assert prompt.tolist() == row[:6].tolist() and true.tolist() == row[6:14].tolist()


def test_of_several_texts_in_a_row_the_first_is_asked_for():
    workload = toys.make(SmallTellingTuned)
    told = np.zeros((1, LENGTH + 1), np.uint8)
    told[0, [0, 4, 5, 9, 10]] = 1  # of the first token of a row nothing can be asked
    tokens = np.arange(LENGTH + 1)[None]
    workload.read_samples = lambda indices: {"tokens": tokens, "told": told}
    prompt, true = workload._sample(0)
    assert prompt.tolist() == [0, 1, 2, 3] and true.tolist() == [4, 5]
    workload.config.inference.update(dict(prompt=3, max_tokens=1))
    prompt, true = workload._sample(0)
    assert prompt.tolist() == [1, 2, 3] and true.tolist() == [4]


def test_log_perplexity_is_that_of_evaluation_with_and_without_an_engine():
    workload, layout = toys.make(SmallTellingTuned), single_device_layout()
    drawn = jax.jit(workload.init)(np.uint32(3))
    random = np.random.default_rng(5)
    changed = jax.tree.map(lambda x: 0.3 * random.normal(size=x.shape).astype(np.float32), drawn["params"])
    state = workload.served_state(drawn | {"params": changed})
    state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, workload.served_struct(layout)))
    indices = np.arange(workload.num_samples)
    batch = workload.dataset.read_eval(indices, ["tokens", "told"]) | {"mask": np.ones(len(indices))}
    totals = jax.jit(
        lambda state: workload.eval_update(workload.eval_totals(), workload.model(state), batch)
    )(state)
    expected = workload.eval_result(jax.device_get(totals))["quality"]
    assert workload._evaluated(state, layout, indices) == pytest.approx(expected, rel=1e-5)
    programs = workload.token_programs(state, layout)
    programs.compile()
    found = workload.served_figures(programs, indices)["log_perplexity"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_published_weights_are_served_untouched():
    workload, layout = toys.make(SmallTellingTuned), single_device_layout()
    frozen = jax.device_get(jax.jit(workload.init)(np.uint32(7)))["frozen"]
    state, changes = workload.import_weights(published(frozen, workload.model_config))
    struct = workload.served_struct(layout)
    assert jax.tree.structure(state) == jax.tree.structure(struct) and not changes
    config, params = workload.served_decoder(jax.tree.map(lazy.place, state, struct))
    assert config.low_rank == 0
    for served, theirs in zip(*map(jax.tree.leaves, (params, frozen)), strict=True):
        np.testing.assert_array_equal(served, theirs)
