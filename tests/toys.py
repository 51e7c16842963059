"""Workloads small enough for tests, which the unchanged training loop runs.

`SmallResNet` is the real ResNet-50 workload with two bottlenecks; `SparseTable` updates only the
rows it touched; `Nim` plays against itself. The door loads them as `--workload=tests.toys:Name`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipelines.base import InMemoryDataset
from mlperf_jax.precision import POLICIES
from mlperf_jax.workload import Program, TrainedWorkload
from mlperf_jax.workloads.image_classification import ResNet50

SIZE, CLASSES = 8, 10


def make(cls, precision="float32", **changes):
    """A toy with some numbers of its config changed; `model__width` stands for `model.width`."""
    config = cls.get_config("mini")
    config.unlock()
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return cls(config, POLICIES[precision], data_dir=Path("/nonexistent"))


def _loop_config(**numbers):
    """The keys that the loop and the door read in every config."""
    common = dict(eval_offset_epochs=0, eval_every_epochs=1, steps_per_dispatch=1, precision="auto")
    return ConfigDict(common | numbers)


class SmallResNet(ResNet50):
    """Stages (1, 1) on 8x8 images, whose ten classes differ by a pattern under noise."""

    @staticmethod
    def get_config(preset):
        return _loop_config(
            model=dict(
                stages=(1, 1),
                width=16,
                num_classes=CLASSES,
                image_size=SIZE,
                channels_in=1,
                stem="small",
                bn_span=0,
            ),
            data=dict(name="patterns", mean=(128.0,), std=(64.0,), num_train=104, num_eval=44),
            batch_size=32,
            eval_batch_size=32,
            gradient_accumulation_steps=1,
            label_smoothing=0.1,
            optimizer=dict(name="sgd", base_lr=0.1, momentum=0.9, weight_decay=1e-4),
            schedule=dict(warmup_epochs=0, decay_epochs=10, end_lr=1e-4, power=2.0),
            target=2.0,  # accuracies end at 1: a run takes all its epochs
            max_epochs=3,
        )

    @functools.cached_property
    def dataset(self):
        random = np.random.default_rng(5)
        patterns = random.integers(0, 128, (CLASSES, SIZE, SIZE, 1))

        def examples(count):
            label = random.integers(CLASSES, size=count, dtype=np.int32)
            noise = random.integers(0, 128, (count, SIZE, SIZE, 1))
            image = (patterns[label] + noise).astype(np.uint8)
            return {"image": image, "label": label, "id": np.arange(count, dtype=np.int32)}

        sizes = self.config.data
        return InMemoryDataset(
            examples(sizes.num_train), examples(sizes.num_eval), fake=True, description="patterns"
        )


class RecordingResNet(SmallResNet):
    """Writes into $TOY_RECORD which examples each process trained on and how many were evaluated.

    With $TOY_STEP_SECONDS every batch takes that long, so that there is time to be killed in.
    """

    def data(self, engine, state, block, start, notes=None):
        state, batches = super().data(engine, state, block, start, notes)
        return state, self._recorded(batches, start)

    def _recorded(self, batches, step):
        for batch in batches:
            self._write({"step": step, "rows": batch["id"].tolist()})
            time.sleep(float(os.environ.get("TOY_STEP_SECONDS", 0)))
            yield batch
            step += 1

    def eval_result(self, totals):
        result = super().eval_result(totals)
        self._write({"eval": result})
        return result

    def _write(self, entry):
        with open(f"{os.environ['TOY_RECORD']}.{jax.process_index()}", "a") as file:
            file.write(json.dumps(entry) + "\n")


class SparseTable(TrainedWorkload):
    """Matrix factorisation: ratings are products of users' and items' rows of one table [N, D].

    A step reads and writes only the rows of its pairs, by their own gradient; there is no gradient of
    the table and no optimizer.
    """

    benchmark = "toy_sparse"
    metric = "1 - error"
    users, items, width = 96, 64, 8

    @staticmethod
    def get_config(preset):
        return _loop_config(batch_size=64, target=0.9, max_epochs=30, eval_every_epochs=5, lr=0.1)

    def __init__(self, config, policy, *, data_dir, synthetic=False):
        super().__init__(config, policy, data_dir=data_dir, synthetic=synthetic)
        random = np.random.default_rng(1)
        self.user, self.item = (a.ravel() for a in np.mgrid[: self.users, : self.items].astype(np.int32))
        taste, kind = random.normal(size=(self.users, 4)), random.normal(size=(self.items, 4))
        self.rating = (taste @ kind.T / 2).astype(policy.param_dtype).ravel()

    @property
    def num_train(self):
        return self.rating.size

    num_eval = num_train

    def init(self, seed):
        shape = (self.users + self.items, self.width)
        table = 0.5 * jax.random.normal(jax.random.key(seed), shape, self.policy.param_dtype)
        return {"step": jnp.zeros((), jnp.int32), "seed": jnp.asarray(seed, jnp.uint32), "table": table}

    def train_step(self, state, batch):
        rows = jnp.stack([batch["user"], self.users + batch["item"]])  # [2, B]
        a, b = state["table"][rows]  # [B, D] each
        error = (a * b).sum(-1) - batch["rating"]
        update = -self.config.lr * error[:, None] * jnp.stack([b, a])
        table = state["table"].at[rows].add(update)
        return state | {"step": state["step"] + 1, "table": table}, {"loss": jnp.square(error).mean()}

    def data(self, engine, state, block, start, notes=None):
        return state, self._batches(engine.rows, start, block.stop)

    def _batches(self, rows, start, stop):
        for step in range(start, stop):
            picked = np.random.default_rng([7, step]).integers(self.num_train, size=self.batch_size)[rows]
            yield {"user": self.user[picked], "item": self.item[picked], "rating": self.rating[picked]}

    def evaluate(self, engine, state, notes=None):
        error = float(engine.run("error", state["table"]))
        return {"quality": 1 - error, "error": error}

    def batch_struct(self, layout):
        kinds = {"user": np.int32, "item": np.int32, "rating": self.policy.param_dtype}
        return {name: layout.struct((self.batch_size,), dtype, ("batch",)) for name, dtype in kinds.items()}

    def state_shardings(self, state, layout):
        table = layout.param_sharding(state["table"].shape, ("table_row", "embed"))
        return super().state_shardings(state, layout) | {"table": table}

    def programs(self, state, layout):
        def error(table):
            product = table[: self.users] @ table[self.users :].T
            return jnp.abs(product - self.rating.reshape(product.shape)).mean()

        return {"error": Program(error, (state["table"],), out_shardings=layout.replicated)}


@dataclasses.dataclass(frozen=True)
class _Rules:
    """Nim with one heap: players in turn take 1 to 3; who takes the last wins."""

    heap: int = 10
    most: int = 3


class Nim(TrainedWorkload):
    """Learns values of moves [heap + 1, 3] from games against itself, which are made in `data`.

    Each block first plays games with the values so far and puts their moves into the replay window,
    which is part of the state; its steps draw from the window. Quality: matches won against a player
    who moves at random, playing second in half of them.
    """

    benchmark = "toy_selfplay"
    metric = "matches won"
    unit = "moves"
    rules = _Rules()
    games, matches, kept = 64, 512, 4

    @staticmethod
    def get_config(preset):
        return _loop_config(batch_size=64, target=0.85, max_epochs=40, lr=8.0, explore=0.3)

    @property
    def num_train(self):
        """An epoch is as many moves as a block's games have at most."""
        return self.games * self.rules.heap

    num_eval = matches

    def init(self, seed):
        dtype, size = self.policy.param_dtype, self.kept * self.num_train
        window = {
            "heap": jnp.ones(size, jnp.int32),
            "take": jnp.ones(size, jnp.int32),
            "value": jnp.zeros(size, dtype),
            "real": jnp.zeros(size, dtype),
        }
        values = jnp.zeros((self.rules.heap + 1, self.rules.most), dtype)
        step = jnp.zeros((), jnp.int32)
        return {"step": step, "seed": jnp.asarray(seed, jnp.uint32), "values": values, "window": window}

    def train_step(self, state, batch):
        moves = {name: column[batch["index"]] for name, column in state["window"].items()}

        def loss_of(values):
            error = values[moves["heap"], moves["take"] - 1] - moves["value"]
            return (jnp.square(error) * moves["real"]).sum() / jnp.maximum(moves["real"].sum(), 1)

        loss, gradient = jax.value_and_grad(loss_of)(state["values"])
        values = state["values"] - self.config.lr * gradient
        return state | {"step": state["step"] + 1, "values": values}, {"loss": loss}

    def data(self, engine, state, block, start, notes=None):
        if start == block.start:  # else the block's games are in the window that was saved
            state = engine.run("play", state)
        return state, self._draws(engine.rows, start, block.stop)

    def _draws(self, rows, start, stop):
        for step in range(start, stop):
            draw = np.random.default_rng([3, step]).integers(self.kept * self.num_train, size=self.batch_size)
            yield {"index": draw[rows].astype(np.int32)}

    def evaluate(self, engine, state, notes=None):
        won = int(engine.run("match", state["values"]))
        return {"quality": won / self.matches}

    def batch_struct(self, layout):
        return {"index": layout.struct((self.batch_size,), np.int32, ("batch",))}

    def programs(self, state, layout):
        places = jax.tree.map(lambda x: x.sharding, state)
        return {
            "play": Program(self._play, (state,), donate=(0,), out_shardings=places),
            "match": Program(self._match, (state["values"],), out_shardings=layout.replicated),
        }

    def _best(self, values, heap):
        allowed = jnp.arange(1, self.rules.most + 1) <= heap[:, None]
        return 1 + jnp.where(allowed, values[heap], -jnp.inf).argmax(-1)

    def _any(self, key, heap):
        return jax.random.randint(key, heap.shape, 1, jnp.clip(heap, 1, self.rules.most) + 1)

    def _play(self, state):
        """Plays `games` games and pushes the oldest out of the window."""

        def move(heap, turn):
            key, coin = jax.random.split(jax.random.fold_in(key_of_block, turn))
            explores = jax.random.bernoulli(coin, self.config.explore, heap.shape)
            take = jnp.where(explores, self._any(key, heap), self._best(state["values"], heap))
            return jnp.maximum(heap - take, 0), (heap, take)

        key_of_block = jax.random.fold_in(jax.random.key(state["seed"]), state["step"])
        turns = jnp.arange(self.rules.heap)
        start = jnp.full(self.games, self.rules.heap)
        _, (heap, take) = jax.lax.scan(move, start, turns)  # [turn, game]
        winner = ((heap > 0).sum(0) - 1) % 2
        value = jnp.where(turns[:, None] % 2 == winner, 1, -1)
        made = {"heap": heap, "take": take, "value": value, "real": heap > 0}

        def push(old, new):
            return jnp.concatenate([old[new.size :], new.ravel().astype(old.dtype)])

        return state | {"window": {name: push(state["window"][name], made[name]) for name in made}}

    def _match(self, values):
        """Plays `matches` matches against a random player; returns how many were won."""

        def move(heap, turn):
            random = self._any(jax.random.fold_in(jax.random.key(11), turn), heap)
            take = jnp.where((jnp.arange(self.matches) + turn) % 2 == 0, self._best(values, heap), random)
            return jnp.maximum(heap - take, 0), heap

        start = jnp.full(self.matches, self.rules.heap)
        _, heap = jax.lax.scan(move, start, jnp.arange(self.rules.heap))
        winner = ((heap > 0).sum(0) - 1) % 2  # the turn, even or odd, that took the last
        return (winner == jnp.arange(self.matches) % 2).sum()
