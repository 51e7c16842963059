"""Utterances with their transcripts, in batches of few lengths.

An example has `samples` [N] int16 at 16 kHz, `num_samples` [] int32, `symbols` [U] int32 and `num_symbols` [] int32.
N and U are those of a bucket: the first that holds the utterance. What an utterance does not fill is zeros.

A batch has utterances of one bucket. In training an utterance waits, in the order of the global stream, until as many of
its bucket as a batch has are there (`input_pipelines.bucketed`). Evaluation goes bucket by bucket.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from input_pipelines import base, bucketed, synthetic
from input_pipelines.sound.symbols import SAMPLE_RATE, Symbols
from input_pipelines.text.packing import Ragged
from mlperf_jax.errors import UserError

_INT16, _INT32 = np.dtype(np.int16), np.dtype(np.int32)
_DISTINCT = 64  # of made-up utterances


class Sounds(Protocol):
    """Recordings, wherever they lie.

    Attributes:
        lengths: [N] int64, samples of each.
    """

    @property
    def lengths(self) -> np.ndarray: ...

    def rows(self, indices: np.ndarray, width: int) -> np.ndarray:
        """Recordings [B] as [B, width] int16, filled up with zeros; none is longer than `width`."""
        ...


class FlatSounds:
    """Recordings one after the other in one array, or mapped file.

    Args:
        samples: [S] int16.
        starts: [N + 1] int64; recording n is `samples[starts[n]:starts[n + 1]]`.
    """

    def __init__(self, samples: np.ndarray, starts: np.ndarray) -> None:
        self._samples, self._starts = samples, starts
        self.lengths = np.diff(starts)

    def rows(self, indices: np.ndarray, width: int) -> np.ndarray:
        rows = np.zeros((len(indices), width), np.int16)
        for row, index in zip(rows, indices.tolist(), strict=True):
            start, stop = self._starts[index], self._starts[index + 1]
            row[: stop - start] = self._samples[start:stop]
        return rows


class Utterances:
    """Recordings and what is said in them.

    Args:
        sounds: the recordings.
        symbols: their transcripts.
        texts: the same as people write them, of those that are evaluated.
        count: how many utterances there are; made-up ones begin again after the last recording.

    Attributes:
        num_samples, num_symbols: [N] int64, of each.
    """

    def __init__(
        self, sounds: Sounds, symbols: Ragged, texts: Sequence[str] = (), count: int | None = None
    ) -> None:
        self._sounds, self._symbols, self._texts = sounds, symbols, texts
        which = np.arange(len(symbols) if count is None else count) % len(symbols)
        self.num_samples, self.num_symbols = sounds.lengths[which], symbols.lengths[which]

    def __len__(self) -> int:
        return len(self.num_samples)

    def text(self, index: int) -> str:
        """What is said in an utterance."""
        return self._texts[index % len(self._symbols)]

    def samples(self, indices: np.ndarray, width: int) -> np.ndarray:
        """Recordings [B] as [B, width] int16."""
        return self._sounds.rows(indices % len(self._symbols), width)

    def symbols(self, indices: np.ndarray, width: int) -> np.ndarray:
        """Transcripts [B] as [B, width] int32."""
        rows = np.zeros((len(indices), width), np.int32)
        for row, index in zip(rows, (indices % len(self._symbols)).tolist(), strict=True):
            start, stop = self._symbols.starts[index], self._symbols.starts[index + 1]
            row[: stop - start] = self._symbols.values[start:stop]
        return rows


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The shape of a batch's rows.

    Attributes:
        samples: N.
        symbols: U, of the longest transcript in it or a shorter one; at least 1.
    """

    samples: int
    symbols: int

    @property
    def name(self) -> str:
        """As programs and logs have it."""
        return f"{self.samples}"


class SpeechDataset(base.Dataset):
    """Utterances to train on and to evaluate.

    Args:
        train, evaluation: the utterances.
        symbols: what transcripts are written in; None of made-up ones.
        seconds: how long the buckets are, rising; those that no utterance needs are left out.
        sorted_epochs: so many epochs begin with the shortest bucket and end with the longest, as Amodei et al.
            (arXiv:1512.02595, section 3.1) have the first.
        fake, description: see `base.Dataset`.
        num_threads: see `base.prefetched`.

    Attributes:
        train, evaluation, symbols: those.
        buckets: of both, from the shortest to the longest.
        train_buckets: those of `buckets` that some train utterance is in.

    Raises:
        UserError: an utterance is longer than all buckets, or these do not rise.
    """

    def __init__(
        self,
        train: Utterances,
        evaluation: Utterances,
        *,
        symbols: Symbols | None,
        seconds: Sequence[float],
        sorted_epochs: int = 0,
        fake: bool,
        description: str,
        num_threads: int = 1,
    ) -> None:
        self.sorted_epochs = sorted_epochs
        self._order = functools.lru_cache(maxsize=4)(self._of_epoch)
        self.train, self.evaluation, self.symbols = train, evaluation, symbols
        self._bucket_of = tuple(bucket_of(part.num_samples, seconds) for part in (train, evaluation))
        self.buckets = self._narrowed(seconds)
        self.train_buckets = [self.buckets[n] for n in np.unique(self._bucket_of[0])]
        spec = spec_of(self.buckets[-1])
        super().__init__(
            num_train=len(train),
            num_eval=len(evaluation),
            train_spec=spec,
            eval_spec={**spec, "index": ((), _INT32)},
            fake=fake,
            description=f"{description} ({100 * self.padding:.1f}% padding in {len(self.train_buckets)} buckets)",
            num_threads=num_threads,
        )

    def _narrowed(self, seconds: Sequence[float]) -> list[Bucket]:
        """The buckets that have utterances; `_bucket_of` numbers them anew."""
        used = np.unique(np.concatenate(self._bucket_of))
        self._bucket_of = tuple(np.searchsorted(used, of) for of in self._bucket_of)
        most = np.ones(len(used), np.int64)
        for part, of in zip((self.train, self.evaluation), self._bucket_of, strict=True):
            np.maximum.at(most, of, part.num_symbols)
        pairs = zip(_widths(seconds)[used].tolist(), np.maximum.accumulate(most).tolist(), strict=True)
        return [Bucket(*pair) for pair in pairs]

    @property
    def padding(self) -> float:
        """The share of the train batches' samples that are none."""
        widths = np.array([bucket.samples for bucket in self.buckets])[self._bucket_of[0]]
        return float(1 - self.train.num_samples.sum() / widths.sum())

    def eval_buckets(self, indices: np.ndarray) -> list[Bucket]:
        """The bucket of each of evaluation examples [N]."""
        return [self.buckets[n] for n in self._bucket_of[1][indices]]

    # Training.

    def _of_epoch(self, seed: int, epoch: int, num_examples: int) -> np.ndarray:
        """As `base.epoch_permutation`; in the first epochs with the shortest bucket first."""
        order = base.epoch_permutation(seed, epoch, num_examples)
        if epoch >= self.sorted_epochs:
            return order
        return order[np.argsort(self._bucket_of[0][order], kind="stable")]

    def read_train(self, start: int, stop: int, seed: int) -> base.HostBatch:
        """The examples of the stream itself, padded to the longest bucket among them."""
        return self._train_rows(np.arange(start, stop), seed)

    def _train_batch(self, step: int, *, seed: int, batch_size: int, rows: slice) -> base.HostBatch:
        positions = bucketed.batch_of_a_bucket(
            step, self._bucket_of[0], seed=seed, batch_size=batch_size, order=self._order
        )
        return self._train_rows(positions[rows], seed)

    def _train_rows(self, positions: np.ndarray, seed: int) -> base.HostBatch:
        examples = base.examples_at(positions, seed=seed, num_examples=self.num_train, order=self._order)
        bucket = self._bucket_of[0][examples].max(initial=0)
        return self._fields(self.train, examples, self.buckets[bucket], tuple(self.train_spec))

    def _fields(
        self, part: Utterances, examples: np.ndarray, bucket: Bucket, names: Collection[str]
    ) -> base.HostBatch:
        read: dict[str, Callable[[], np.ndarray]] = {
            "samples": lambda: part.samples(examples, bucket.samples),
            "num_samples": lambda: part.num_samples[examples].astype(np.int32),
            "symbols": lambda: part.symbols(examples, bucket.symbols),
            "num_symbols": lambda: part.num_symbols[examples].astype(np.int32),
            "index": lambda: examples.astype(np.int32),
        }
        return {name: read[name]() for name in names}

    # Evaluation.

    def eval_batches(self, *, batch_size: int, rows: slice) -> base.BatchIterator:
        """As `base.Dataset` has it, but bucket by bucket: what the last batch of each lacks is zeros."""
        parts = [np.flatnonzero(self._bucket_of[1] == bucket) for bucket in range(len(self.buckets))]
        groups = [
            part[first : first + batch_size] for part in parts for first in range(0, len(part), batch_size)
        ]

        def make_batch(index: int) -> base.HostBatch:
            group = groups[index]
            bucket = self.buckets[self._bucket_of[1][group[0]]]
            read = self._fields(self.evaluation, group[rows], bucket, self._eval_fields)
            return base.with_mask(read, rows.stop - rows.start)

        return self._prefetched(make_batch, 0, len(groups))

    @property
    def _eval_fields(self) -> list[str]:
        return [name for name in self.eval_spec if name != "mask"]

    def read_eval(self, indices: np.ndarray, fields: Collection[str]) -> base.HostBatch:
        """As `base.Dataset` has it, padded to the longest bucket among them."""
        bucket = self._bucket_of[1][indices].max(initial=0)
        return self._fields(self.evaluation, indices, self.buckets[bucket], fields)


def spec_of(bucket: Bucket) -> base.Spec:
    """The fields of an example in a bucket."""
    return {
        "samples": ((bucket.samples,), _INT16),
        "num_samples": ((), _INT32),
        "symbols": ((bucket.symbols,), _INT32),
        "num_symbols": ((), _INT32),
    }


def _widths(seconds: Sequence[float]) -> np.ndarray:
    """Samples of buckets of so many seconds."""
    return np.array([round(second * SAMPLE_RATE) for second in seconds])


def bucket_of(lengths: np.ndarray, seconds: Sequence[float]) -> np.ndarray:
    """The first bucket that holds each of utterances of [N] samples, [N] int64.

    Raises:
        UserError: one is longer than the last, or the buckets do not rise.
    """
    widths = _widths(seconds)
    if len(widths) == 0 or (np.diff(widths, prepend=0) <= 0).any():
        raise UserError(f"--config.data.seconds={tuple(seconds)} must rise from above 0.")
    found = np.searchsorted(widths, lengths)
    if found.max(initial=0) == len(widths):
        raise UserError(
            f"An utterance has {lengths.max() / SAMPLE_RATE:.2f} seconds, more than the last of "
            f"--config.data.seconds={tuple(seconds)}; add a longer one."
        )
    return found


def open_synthetic(
    name: str,
    options: Mapping[str, Any],
    *,
    num_train: int,
    num_eval: int,
    num_symbols: int,
    longest: float,
    symbols_per_second: float = 15,
) -> SpeechDataset:
    """What `--synthetic_data` makes up: noise with random transcripts, a few of them repeated.

    Args:
        name: of the set that it stands for.
        options: `seconds`, `sorted_epochs` (0), and counts as `synthetic.counts` has them.
        num_train, num_eval: the real set's counts.
        num_symbols: what transcripts are drawn from.
        longest: seconds of the longest train utterance.
        symbols_per_second: of transcripts; by default about what people speak in characters.
    """
    random = np.random.default_rng(0)
    num_train, num_eval = synthetic.counts(options, num_train, num_eval)
    lengths = (SAMPLE_RATE * longest * random.uniform(0.3, 1.0, _DISTINCT)).astype(np.int64)
    lengths[0] = SAMPLE_RATE * longest
    starts = np.concatenate([[0], np.cumsum(lengths)])
    noise = random.normal(0, 1000, starts[-1]).astype(np.int16)
    texts = [
        random.integers(num_symbols, size=1 + int(n * symbols_per_second / SAMPLE_RATE)).tolist()
        for n in lengths.tolist()
    ]
    written = [" ".join(map(str, text)) for text in texts]
    sounds, symbols = FlatSounds(noise, starts), Ragged.of(texts, _INT32)
    return SpeechDataset(
        Utterances(sounds, symbols, written, num_train),
        Utterances(sounds, symbols, written, num_eval),
        symbols=None,
        seconds=options["seconds"],
        sorted_epochs=options.get("sorted_epochs", 0),
        fake=True,
        description=synthetic.describe(name, num_train, num_eval),
    )
