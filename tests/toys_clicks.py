"""DLRM and DLRM-DCNv2 at a size for tests, on clicks that follow a rule; the door loads them by name."""

from __future__ import annotations

import functools

import numpy as np

from configs import dlrm, dlrm_dcnv2
from input_pipelines.clicks import click_logs
from mlperf_jax.workloads.recommendation import DLRMDCNv2, DLRMv1

COLUMNS = click_logs.Columns(num_dense=3, table_sizes=(11, 300, 5, 40), multi_hot_sizes=(1, 3, 1, 2))
NUM_TRAIN, NUM_EVAL = 1280, 1003


def _examples(random, count, effects):
    dense = random.normal(size=(count, COLUMNS.num_dense)).astype(np.float32)
    sparse = random.integers(COLUMNS.rows, size=(count, len(COLUMNS.rows))).astype(np.int32)
    tables = np.repeat(np.arange(len(COLUMNS.table_sizes)), COLUMNS.multi_hot_sizes)
    logit = dense @ [1.0, -1.0, 0.5]
    for look_up, table in enumerate(tables):
        logit += effects[table][sparse[:, look_up]]
    label = (random.random(count) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    return {"dense": dense, "sparse": sparse, "label": label}


@functools.cache
def dataset():
    random = np.random.default_rng(11)
    effects = [random.normal(size=size) for size in COLUMNS.table_sizes]
    train, evaluation = (_examples(random, n, effects) for n in (NUM_TRAIN, NUM_EVAL))
    return click_logs.InMemoryClicks(COLUMNS, train, evaluation, fake=True, description="clicks by a rule")


def _small(config):
    config.unlock()
    config.model.width = 8
    config.model.bottom, config.model.top = (16, 8), (32, 1)
    config.batch_size, config.eval_batch_size = 64, 256
    config.target, config.max_epochs = 2.0, 4  # no area reaches 2: a run goes to its end
    config.optimizer.base_lr = 0.1
    config.inference.min_duration_s = 0.5
    config.inference.batch_sizes = (200, 704, 1400)
    return config


class SmallDLRM(DLRMv1):
    dataset = functools.cached_property(lambda self: dataset())

    @staticmethod
    def get_config(preset):
        return _small(dlrm.get_config("mini"))


class SmallDCNv2(DLRMDCNv2):
    dataset = functools.cached_property(lambda self: dataset())

    @staticmethod
    def get_config(preset):
        return _small(dlrm_dcnv2.get_config("mini"))
