"""MLPerf's Wikipedia for BERT: sequences of 512 subwords whose words are masked already, as TFRecords.

DATA_DIR/wikipedia/tfrecord holds the parts (part-00000-of-00500, ...) that create_pretraining_data.py wrote, and
DATA_DIR/wikipedia/eval_10k the 10,000 sequences of pick_eval_samples.py (mlcommons/training,
language_model/tensorflow/bert/cleanup_scripts). `prepare` counts them and makes DATA_DIR/wikipedia_index: where every
256th record begins, and the evaluation sequences as arrays.

A part's sequences are in random order already, but all of them from a 500th of Wikipedia. An epoch draws blocks of 256
from all parts, and within windows of 64 blocks their sequences: what is held is the blocks' order and a window or two.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, prepared, progress, tfrecord
from input_pipelines.base import HostBatch, Spec
from input_pipelines.text import masked_pairs
from mlperf_jax.errors import Refused, UserError

LENGTH, MASKED, VOCABULARY_SIZE = 512, 76, 30_522
NUM_TRAIN, NUM_EVAL = (156_725_653, 156_726_829), 10_000
"""Sequences to train on, by Google's count and by NVIDIA's (in their submissions), and to evaluate."""

BLOCK, WINDOW = 256, 64  # records, and blocks whose records are drawn together
_INDEX = np.dtype(np.int64)

SPEC: Spec = masked_pairs.spec(LENGTH, MASKED)

_FEATURES = {
    "tokens": "input_ids",
    "segment": "input_mask",
    "token_type": "segment_ids",
    "masked": "masked_lm_positions",
    "word": "masked_lm_ids",
    "word_weight": "masked_lm_weights",
    "is_random": "next_sentence_labels",
}
_BELOW = {"tokens": VOCABULARY_SIZE, "word": VOCABULARY_SIZE, "masked": LENGTH}  # all others: 2


class Wikipedia(base.Dataset):
    """Sequences read from TFRecords by blocks."""

    def __init__(
        self, blocks: np.ndarray, paths: Sequence[Path], evaluation: Mapping[str, np.ndarray], **facts: Any
    ) -> None:
        """Opens the set.

        Args:
            blocks: [K, 4] int64, of each block its part, where it begins and ends in it, and its number of records.
            paths: of the parts.
            evaluation: fields of the evaluation sequences.
            facts: as `Dataset` takes them.
        """
        num_train, num_eval = int(blocks[:, 3].sum()), len(evaluation["tokens"])
        super().__init__(num_train=num_train, num_eval=num_eval, train_spec=SPEC, eval_spec=SPEC, **facts)
        self._blocks, self._paths, self._eval = blocks, paths, evaluation
        self._lock = threading.Lock()
        self._epoch = functools.lru_cache(2)(self._find_windows)
        self._window = functools.lru_cache(2)(self._read_window)

    def read_train(self, start: int, stop: int, seed: int) -> HostBatch:
        records = []
        while start < stop:
            epoch, offset = divmod(start, self.num_train)
            with self._lock:  # what one thread reads the others wait for
                begins = self._epoch(seed, epoch)[1]
                window = int(np.searchsorted(begins, offset, "right")) - 1
                found = self._window(seed, epoch, window)
            first = offset - int(begins[window])
            records += found[first : first + stop - start]
            start += len(found) - first
        return parsed(records)

    def read_eval(self, indices: np.ndarray, fields: Collection[str]) -> HostBatch:
        return {name: self._eval[name][indices] for name in fields}

    def _find_windows(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of an epoch's blocks [K], and the offset at which each window begins [K / WINDOW]."""
        order = base.epoch_permutation(seed, epoch, len(self._blocks))
        ends = np.cumsum(self._blocks[order, 3])
        return order, np.concatenate([[0], ends[WINDOW - 1 : -1 : WINDOW]])

    def _read_window(self, seed: int, epoch: int, window: int) -> list[bytes]:
        """The records of a window in the order in which they are trained on."""
        order = self._epoch(seed, epoch)[0][window * WINDOW : (window + 1) * WINDOW]
        records = [
            record
            for part, start, stop, _ in self._blocks[order].tolist()
            for record in tfrecord.block(self._paths[part], start, stop)
        ]
        return [records[i] for i in base.epoch_permutation(seed, epoch + 1 << 32 | window, len(records))]


def parsed(records: Iterable[bytes]) -> HostBatch:
    """The fields of records, [N, ...].

    Raises:
        UserError: one is no sequence of this set.
    """
    rows = [_sequence(record) for record in records]
    return {name: np.array([row[name] for row in rows], dtype) for name, (_, dtype) in SPEC.items()}


def _sequence(record: bytes) -> dict[str, np.ndarray]:
    try:
        example = tfrecord.parse(record)
    except Refused as error:
        raise UserError(f"A record of Wikipedia's cannot be read: {error}; get a sound copy of it.") from None
    found = {}
    for name, feature in _FEATURES.items():
        (size,), dtype = SPEC[name]
        values, limit = example.get(feature), _BELOW.get(name, 2)
        if not isinstance(values, np.ndarray) or len(values) != size:
            raise UserError(
                f"A record of Wikipedia's has no {feature} of {size}; make the set for {LENGTH} tokens."
            )
        if not ((values >= 0) & (values < limit)).all():
            raise UserError(
                f"A record of Wikipedia's has a {feature} that is not below {limit}; get it again."
            )
        found[name] = values.astype(dtype)
    return found


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/wikipedia_index unless it is there, or a made-up set, and says what it is.

    Args:
        data_dir: see the module.
        fake: if not 0, so many train sequences of random words are made up, and an eighth as many for evaluation.
        verify: hash the files of an index that is there already.

    Raises:
        UserError: the records are not there, damaged, not as many as belong, or the disk is full.
    """
    build = functools.partial(_make_up, fake) if fake else functools.partial(_count, data_dir / "wikipedia")
    folder = _folder(data_dir, fake)
    prepared.prepare_folder(folder, build, verify=verify)
    return f"{open_dataset(data_dir, {'fake': fake}).description}, in {folder}"


def _count(root: Path, folder: Path) -> dict[str, Any]:
    paths = sorted((root / "tfrecord").glob("part-*"))
    if not paths or not (root / "eval_10k").is_file():
        raise UserError(
            f"MLPerf's Wikipedia is not in {root}: it takes the parts in {root / 'tfrecord'} and {root / 'eval_10k'}; make "
            "them with MLPerf's scripts (language_model/tensorflow/bert/cleanup_scripts), or use a made-up set: "
            "`python -m mlperf_jax.prepare --workload=bert --fake=N`, then --config.data.fake=N."
        )
    facts = _write_index(folder, root, paths, root / "eval_10k")
    if facts["num_train"] not in NUM_TRAIN or facts["num_eval"] != NUM_EVAL:
        raise UserError(
            f"{root} has {facts['num_train']:,} sequences to train on and {facts['num_eval']:,} to evaluate, where "
            f"{NUM_TRAIN[0]:,} or {NUM_TRAIN[1]:,} and {NUM_EVAL:,} belong; look for missing parts."
        )
    return facts | {"fake": False}


def _write_index(folder: Path, root: Path, paths: Sequence[Path], evaluation: Path) -> dict[str, Any]:
    blocks = []
    with progress.step(f"counting the sequences of {root}", len(paths), "parts") as advance:
        for part, path in enumerate(paths):
            starts, count = tfrecord.offsets(path, BLOCK)
            sizes = np.full(len(starts) - 1, BLOCK)
            sizes[-1:] = count - BLOCK * (len(sizes) - 1)
            blocks.append(np.stack([np.full(len(sizes), part), starts[:-1], starts[1:], sizes], 1))
            advance(1)
        starts, num_eval = tfrecord.offsets(evaluation, BLOCK)
        prepared.save_arrays(folder, "eval", parsed(tfrecord.block(evaluation, 0, int(starts[-1]))))
    index = np.concatenate(blocks).astype(_INDEX)
    np.save(folder / "blocks.npy", index, allow_pickle=False)
    parts = {str(path.relative_to(root)): path.stat().st_size for path in paths}
    num_train = int(index[:, 3].sum())
    return {
        "name": folder.name, "num_train": num_train, "num_eval": num_eval, "num_blocks": len(index), "parts": parts,
    }  # fmt: skip


def _make_up(count: int, folder: Path) -> dict[str, Any]:
    """Four parts, or as many as there are sequences, beside their index."""
    random, parts = np.random.default_rng(0), min(count, 4)
    (folder / "tfrecord").mkdir()
    sizes = [count // parts + (part < count % parts) for part in range(parts)]
    paths = [folder / "tfrecord" / f"part-{part:05}-of-{parts:05}" for part in range(parts)]
    with progress.step(f"making up {count:,} sequences", count, "sequences") as advance:
        for path, size in zip([*paths, folder / "eval_10k"], [*sizes, max(1, count // 8)], strict=True):
            with path.open("wb") as file:
                for _ in range(size):
                    file.write(tfrecord.framed(tfrecord.encode(_made_up(random))))
            advance(size)
    return _write_index(folder, folder, paths, folder / "eval_10k") | {"fake": True}


def _made_up(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Random words, half of the sequences shorter than a row, a seventh of whose words are asked for."""
    length = LENGTH if random.random() < 0.5 else int(random.integers(5, LENGTH))
    seen = np.arange(LENGTH) < length
    asked = min(max(1, round(length * 0.15)), MASKED)
    told = np.arange(MASKED) < asked
    places = np.pad(np.sort(random.permutation(length)[:asked]), (0, MASKED - asked))
    return {
        "input_ids": np.where(seen, random.integers(1000, VOCABULARY_SIZE, LENGTH), 0),
        "input_mask": seen * 1,
        "segment_ids": (seen & (np.arange(LENGTH) >= length // 2)) * 1,
        "masked_lm_positions": places,
        "masked_lm_ids": np.where(told, random.integers(1000, VOCABULARY_SIZE, MASKED), 0),
        "masked_lm_weights": told.astype(np.float32),
        "next_sentence_labels": random.integers(2, size=1),
    }


open_synthetic = functools.partial(
    masked_pairs.open_synthetic,
    "wikipedia",
    SPEC,
    SPEC,
    VOCABULARY_SIZE,
    num_train=NUM_TRAIN[0],
    num_eval=NUM_EVAL,
)


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> Wikipedia:
    """Opens the counted set.

    Args:
        data_dir: see the module.
        options: `fake` (int, 0): the set that `prepare --fake=N` wrote; `num_threads`, see `base`.

    Raises:
        UserError: it is not prepared, damaged, or its parts are not those that were counted.
    """
    fake = options.get("fake") or 0
    folder = _folder(data_dir, fake)
    manifest = prepared.read_manifest(folder)
    root = folder if fake else data_dir / "wikipedia"
    for name, size in manifest["parts"].items():
        if not (root / name).is_file() or (root / name).stat().st_size != size:
            raise UserError(f"{root / name} is not the file that was counted; {prepared.AGAIN}")
    blocks = prepared.open_array(folder / "blocks.npy", (manifest["num_blocks"], 4), _INDEX)
    return Wikipedia(
        np.array(blocks),
        [root / name for name in manifest["parts"]],
        prepared.open_arrays(folder, "eval", manifest["num_eval"], SPEC),
        fake=bool(fake),
        description="made-up sequences, not MLPerf's data" if fake else "Wikipedia",
        num_threads=base.num_threads(options),
    )


def _folder(data_dir: Path, fake: int) -> Path:
    return data_dir / (f"wikipedia_fake_{fake}" if fake else "wikipedia_index")
