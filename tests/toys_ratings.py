"""NCF at a size for tests, on choices that follow a rule; the door loads it by name."""

from __future__ import annotations

import functools

import numpy as np

from configs import ncf
from input_pipelines.ratings import interactions
from mlperf_jax.workloads.collaborative_filtering import NCF

USERS, ITEMS, NEGATIVES = 45, 70, 20


@functools.cache
def dataset():
    """Users like items of their own kind, of which there are five."""
    random = np.random.default_rng(3)
    rows = []
    for user in range(USERS):
        liking = np.where(np.arange(ITEMS) % 5 == user % 5, 20.0, 1.0)
        chosen = random.choice(ITEMS, random.integers(20, 26), replace=False, p=liking / liking.sum())
        rows += [(user, item, time) for time, item in enumerate(chosen)]
    user, item, time = np.array(rows)[random.permutation(len(rows))].T
    data = interactions.leave_one_out(user, item, time, NEGATIVES)
    return interactions.InteractionSet(data, negatives=4, fake=True, name="choices by a rule")


class SmallNCF(NCF):
    dataset = functools.cached_property(lambda self: dataset())

    @staticmethod
    def get_config(preset):
        config = ncf.get_config("mini")
        config.unlock()
        config.model.factors, config.model.layers = 8, (16, 8)
        config.batch_size, config.eval_batch_size = 64, 32
        config.target, config.max_epochs = 2.0, 2  # no share reaches 2: a run goes to its end
        config.inference.min_duration_s = 0.5
        config.inference.batch_sizes = (1, 2)
        return config
