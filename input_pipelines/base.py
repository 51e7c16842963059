"""What a data set is to the training loop, and the machinery that all of them share.

Training reads one endless global stream of examples. Position i of it is example
`i % n` of the permutation of epoch `i // n`, for a set of n examples; step s takes positions
`[s * B, (s + 1) * B)`. A process yields its own rows of each global batch. Nothing else is
state: any number of processes, threads or workers, started at any step, yields the same bits.
"""

from __future__ import annotations

import abc
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from typing import Any, Protocol

import numpy as np
from absl import flags

from input_pipelines import growing

Spec = Mapping[str, tuple[tuple[int, ...], np.dtype]]
"""Shape (without batch axis) and dtype of each field of an example."""
HostBatch = dict[str, np.ndarray]
MapRows = Callable[[Callable[[int], None], Iterable[int]], Iterable[None]]
"""`map`, or that of a pool."""

# More threads of one process gain little: what an image does in Python holds the interpreter's lock.
_MOST_THREADS = 8
_ENDLESS = 2**40  # steps; at a thousand a second this is 35 years


class BatchIterator(Protocol):
    """Batches that are made ahead of time in the background; `close` ends the threads that make them."""

    def __iter__(self) -> Iterator[HostBatch]: ...

    def __next__(self) -> HostBatch: ...

    def close(self) -> None: ...


class Dataset(abc.ABC):
    """A finite set of examples, read in epochs.

    A subclass reads examples; where there are workers, it is picklable.

    Args:
        eval_spec: without `mask`.
        num_threads, num_workers, more_workers: see `prefetched`; the last are for training.

    Attributes:
        num_train, num_eval: numbers of examples.
        train_spec: shape (without batch axis) and dtype of each field of a train example.
        eval_spec: the same, and `mask` (float32): 1.0 for an example, 0.0 for padding.
        fake: whether the examples were made up (`--fake`, `--synthetic_data`), so that no
            quality measured on them means anything.
        description: one phrase for logs, naming the data.
    """

    def __init__(
        self,
        *,
        num_train: int,
        num_eval: int,
        train_spec: Spec,
        eval_spec: Spec,
        fake: bool,
        description: str,
        num_threads: int = 1,
        num_workers: int = 0,
        more_workers: int = 0,
    ) -> None:
        self.num_train, self.num_eval = num_train, num_eval
        self.train_spec: Spec = train_spec
        self.eval_spec: Spec = {**eval_spec, "mask": ((), np.dtype(np.float32))}
        self.fake, self.description = fake, description
        self._prefetched = functools.partial(prefetched, num_threads=num_threads, num_workers=num_workers)
        self._more_workers = more_workers

    @abc.abstractmethod
    def read_train(self, start: int, stop: int, seed: int) -> HostBatch:
        """Returns the examples at positions [start, stop) of the global stream; a pure function."""

    @abc.abstractmethod
    def read_eval(self, indices: np.ndarray, fields: Collection[str]) -> HostBatch:
        """Returns the named fields [N, ...] of eval examples [N], in their order, without a mask."""

    def train_batches(self, *, seed: int, batch_size: int, start_step: int, rows: slice) -> BatchIterator:
        """Yields rows `rows` of the global batches of steps start_step, start_step + 1, ... without end.

        Batches cross the borders of epochs; in each epoch every example appears exactly once.

        Args:
            seed: fixes order and augmentation.
            batch_size: size of the global batch.
            start_step: the first global step, from 0.
            rows: this process's part of every global batch, with start and stop set.
        """
        make_batch = functools.partial(self._train_batch, seed=seed, batch_size=batch_size, rows=rows)
        return self._prefetched(make_batch, start_step, more_workers=self._more_workers)

    def _train_batch(self, step: int, *, seed: int, batch_size: int, rows: slice) -> HostBatch:
        first = step * batch_size
        return self.read_train(first + rows.start, first + rows.stop, seed)

    def eval_batches(self, *, batch_size: int, rows: slice) -> BatchIterator:
        """Yields rows `rows` of the ceil(num_eval / batch_size) batches that hold each eval example once.

        What the last batch lacks is zeros, with mask 0.
        """
        make_batch = functools.partial(self._eval_batch, batch_size=batch_size, rows=rows)
        return self._prefetched(make_batch, 0, num_eval_batches(self.num_eval, batch_size))

    def _eval_batch(self, index: int, *, batch_size: int, rows: slice) -> HostBatch:
        first = index * batch_size
        examples = np.arange(*(min(first + row, self.num_eval) for row in (rows.start, rows.stop)))
        return with_mask(self._eval_rows(examples), rows.stop - rows.start)

    def _eval_rows(self, examples: np.ndarray) -> HostBatch:
        """All fields of eval examples [N], in the one thread that makes a batch."""
        return self.read_eval(examples, [name for name in self.eval_spec if name != "mask"])


@functools.lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns the order of an epoch, [num_examples] int64; 0.2 s for ImageNet's 1.28 million.

    Sorts raw Philox words rather than asking `Generator.permutation`: NumPy keeps the streams of
    its bit generators the same from version to version (NEP 19), but not its distributions.
    """
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
    order = np.argsort(words, kind="stable")
    order.setflags(write=False)  # the cache hands the same array to everyone
    return order


Order = Callable[[int, int, int], np.ndarray]
"""(seed, epoch, number of examples) -> the order of an epoch, as `epoch_permutation`."""


def examples_at(
    positions: np.ndarray, *, seed: int, num_examples: int, order: Order = epoch_permutation
) -> np.ndarray:
    """Returns which example stands at each position of the global stream, [P] int64 -> [P] int64."""
    epochs, offsets = np.divmod(positions, num_examples)
    examples = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        examples[here] = order(seed, int(epoch), num_examples)[offsets[here]]
    return examples


def num_eval_batches(num_examples: int, batch_size: int) -> int:
    return -(-num_examples // batch_size)


def with_mask(fields: Mapping[str, np.ndarray], num_rows: int) -> HostBatch:
    """Pads every field with zeros to `num_rows` rows and adds the mask of the real ones, [rows] float32."""
    num_real = _common_length(fields)
    batch = {name: np.zeros((num_rows, *value.shape[1:]), value.dtype) for name, value in fields.items()}
    for name, value in fields.items():
        batch[name][:num_real] = value
    batch["mask"] = (np.arange(num_rows) < num_real).astype(np.float32)
    return batch


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads(options: Mapping[str, Any]) -> int:
    """The option `num_threads` of a config's `data`; 0, the default, is as many as there are cores, at most 8."""
    return options.get("num_threads") or min(cores(), _MOST_THREADS)


def background(options: Mapping[str, Any]) -> dict[str, int]:
    """What makes the batches of a set that decodes, as `Dataset` takes it, by the options of a config's `data`.

    Args:
        options: `num_threads`, see above, and `num_workers`. Where neither is given, a process for every 8 cores takes
            over if the step waits for the threads, where there are 16 cores or more.
    """
    chosen = options.get("num_threads") or options.get("num_workers")
    more = 0 if chosen or cores() < 2 * _MOST_THREADS else cores() // _MOST_THREADS
    return {
        "num_threads": num_threads(options),
        "num_workers": options.get("num_workers") or 0,
        "more_workers": more,
    }


def prefetched(
    make_batch: Callable[[int], HostBatch],
    start: int,
    stop: int = _ENDLESS,
    *,
    num_threads: int = 1,
    num_workers: int = 0,
    more_workers: int = 0,
) -> BatchIterator:
    """Yields make_batch(start), make_batch(start + 1), ... in order, made ahead in the background.

    Args:
        make_batch: a pure function of the batch's index; picklable if there are workers.
        num_threads: batches made at once in a process.
        num_workers: processes that share the batches, each with `num_threads`; 0 makes them in
            threads of this process. A process's main module is imported again in its workers.
        more_workers: where there are none, processes that take over if the reader waits for the threads.

    Raises:
        What make_batch raises, when the batch that it failed on is asked for.
    """

    def made_by(workers: int, first: int) -> BatchIterator:
        return _made(make_batch, first, stop, num_threads, workers)

    if num_workers or not more_workers:
        return made_by(num_workers, start)
    return growing.Growing(functools.partial(made_by, 0), functools.partial(made_by, more_workers), start)


def _made(
    make_batch: Callable[[int], HostBatch], start: int, stop: int, num_threads: int, num_workers: int
) -> BatchIterator:
    import grain

    if num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's own flags live among absl's global ones, which we leave alone.
    batches = grain.MapDataset.range(start, stop).map(make_batch)
    # Twice the threads are held ready, so that one slow batch does not idle the others.
    read = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    batches = batches.to_iter_dataset(read)
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        batches = batches.mp_prefetch(options)
    return iter(batches)


class Field(Protocol):
    """Values of all examples, [N, ...]: an array, or what can be gathered from like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: np.ndarray, /) -> np.ndarray: ...


class InMemoryDataset(Dataset):
    """A Dataset whose fields are arrays in memory (or mapped files), gathered a batch at a time.

    Args:
        train, evaluation: field -> [N, ...] arrays of equal N.
        fake, description: see `Dataset`.
    """

    def __init__(
        self, train: Mapping[str, Field], evaluation: Mapping[str, Field], *, fake: bool, description: str
    ) -> None:
        super().__init__(
            num_train=_common_length(train),
            num_eval=_common_length(evaluation),
            train_spec={name: (value.shape[1:], value.dtype) for name, value in train.items()},
            eval_spec={name: (value.shape[1:], value.dtype) for name, value in evaluation.items()},
            fake=fake,
            description=description,
        )
        self._train, self._eval = dict(train), dict(evaluation)

    def read_train(self, start: int, stop: int, seed: int) -> HostBatch:
        examples = self._examples_at(np.arange(start, stop), seed)
        return {name: value[examples] for name, value in self._train.items()}

    def _examples_at(self, positions: np.ndarray, seed: int) -> np.ndarray:
        return examples_at(positions, seed=seed, num_examples=self.num_train)

    def read_eval(self, indices: np.ndarray, fields: Collection[str]) -> HostBatch:
        return {name: self._eval[name][indices] for name in fields}


def _common_length(fields: Mapping[str, Sized]) -> int:
    (length,) = {len(value) for value in fields.values()}
    return length
