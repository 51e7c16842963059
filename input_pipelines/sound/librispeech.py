"""LibriSpeech (Panayotov et al., 2015) from its own FLAC files: 281,241 utterances to train on and 2,703 of dev-clean.

DATA_DIR/LibriSpeech (or DATA_DIR itself) holds the folders of OpenSLR's archives (https://www.openslr.org/12), each with
`<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac` and a `.trans.txt` a chapter. `prepare` counts them, learns the
1,023 pieces of words that MLPerf's RNN-T writes in from the transcripts to train on, and leaves an index in
DATA_DIR/librispeech_index; sound stays in the FLAC files and is decoded in background threads.

Utterances of more than 16.7 seconds are not trained on, as in the reference (mlcommons/training,
rnn_speech_recognition/pytorch/configs/baseline_v3-1023sp.yaml). `SECONDS` are the buckets of those: on lengths that are
as LibriSpeech's in mean (12.3 s) and shape, a fifth of them evenly from 2 to 11 s and the others to 16.7, they have
7.3 % of padding; what the real ones have stands in the description of the prepared set. Longer buckets follow, of
utterances that are only evaluated.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, prepared, progress
from input_pipelines.sound import utterances
from input_pipelines.sound.symbols import SAMPLE_RATE, Characters, Pieces, Symbols, learn
from input_pipelines.sound.utterances import SpeechDataset, Utterances
from input_pipelines.text.packing import Ragged
from mlperf_jax.errors import UserError

FOLDERS = {
    "train": {"train-clean-100": 28_539, "train-clean-360": 104_014, "train-other-500": 148_688},
    "eval": {"dev-clean": 2_703},
}
"""Split -> folder -> utterances in it."""
NUM_TRAIN, NUM_EVAL = (sum(folders.values()) for folders in FOLDERS.values())
NUM_PIECES = 1_023
SECONDS = (6.0, 10.0, 12.0, 13.5, 15.0, 16.7, 20.0, 25.0, 36.0)
MAX_SECONDS = 16.7
_PIECES_PER_SECOND = 6.6  # of made-up transcripts: 110 in the longest recording

FAKE_BYTES = 20_000

_PATH = np.dtype("S64")
_FAKE_SECONDS = 1.5, 6.0  # of a made-up utterance
_FAKE_LEVEL = 30  # deviation of its noise, which little of a file holds


class FlacSounds:
    """Recordings in FLAC files.

    Args:
        root: the folder that paths begin in.
        paths: [N] bytes.
        lengths: [N], samples that the files have.
    """

    def __init__(self, root: Path, paths: np.ndarray, lengths: np.ndarray) -> None:
        self._root, self._paths, self.lengths = root, paths, lengths.astype(np.int64)

    def rows(self, indices: np.ndarray, width: int) -> np.ndarray:
        """As `utterances.Sounds` has it.

        Raises:
            UserError: a file is not there, damaged, or of another length than it had.
        """
        rows = np.zeros((len(indices), width), np.int16)
        for row, index in zip(rows, indices.tolist(), strict=True):
            path = self._root / self._paths[index].decode()
            samples = _decoded(path)
            if len(samples) != self.lengths[index]:
                raise UserError(
                    f"{path} has {len(samples):,} samples where it had {self.lengths[index]:,} when it was indexed; "
                    f"{prepared.AGAIN}"
                )
            row[: len(samples)] = samples
        return rows


def _decoded(path: Path) -> np.ndarray:
    """A file's samples [S] int16."""
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="int16")
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be decoded ({prepared.one_line(error)}); get it again.") from None
    if samples.ndim != 1 or rate != SAMPLE_RATE:
        raise UserError(f"{path} is not one channel at {SAMPLE_RATE:,} Hz; get LibriSpeech's own file.")
    return samples


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Indexes DATA_DIR/LibriSpeech unless that was done, or makes a set up, and says what it is.

    Args:
        data_dir: see the module.
        fake: if not 0, so many train utterances of noise are made up, and an eighth as many for evaluation.
        verify: hash what is there already.

    Raises:
        UserError: utterances are missing or damaged, or the disk is full.
    """
    build = functools.partial(_make_up, fake) if fake else functools.partial(_index, _root(data_dir))
    prepared.prepare_folder(_folder(data_dir, fake), build, verify=verify)
    return f"{open_dataset(data_dir, {'fake': fake}).description}, in {_folder(data_dir, fake)}"


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> SpeechDataset:
    """Opens the indexed set.

    Args:
        data_dir: see the module.
        options: `symbols`, "pieces" (the default) or "characters"; `seconds`, how long the buckets are;
            `sorted_epochs` (0), see `SpeechDataset`; `max_seconds` (16.7) of utterances that are trained on;
            `max_eval_seconds` (0 for all) of those that are
            evaluated; `fake` (int, 0): the set that `prepare --fake=N` wrote; `num_threads` that decode.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    fake, kind = options.get("fake") or 0, options.get("symbols", "pieces")
    folder = _folder(data_dir, fake)
    if not folder.is_dir():
        raise UserError(
            f"LibriSpeech is not prepared in {data_dir}; unpack OpenSLR's archives to {data_dir / 'LibriSpeech'} and run "
            "`python -m mlperf_jax.prepare --workload=rnnt --preset=closed` (or use --preset=mini, --synthetic_data, or "
            "a made-up set: the same command with --fake=N, then --config.data.fake=N)."
        )
    facts = prepared.read_manifest(folder)
    root = folder if fake else _root(data_dir)
    limits = options.get("max_seconds", MAX_SECONDS), options.get("max_eval_seconds") or np.inf
    train, evaluation = (
        _read(folder, root, facts, split, kind, limit) for split, limit in zip(FOLDERS, limits, strict=True)
    )
    what = "Fake LibriSpeech (noise, not MLPerf's data)" if fake else "LibriSpeech"
    return SpeechDataset(
        train,
        evaluation,
        symbols=_symbols(folder, kind),
        seconds=options.get("seconds", SECONDS),
        sorted_epochs=options.get("sorted_epochs", 0),
        fake=facts["fake"],
        description=f"{what}, {len(train):,} train and {len(evaluation):,} eval utterances",
        num_threads=base.num_threads(options),
    )


def open_synthetic(options: Mapping[str, Any]) -> SpeechDataset:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    of_pieces = options.get("symbols", "pieces") == "pieces"
    return utterances.open_synthetic(
        "librispeech",
        {"seconds": SECONDS} | dict(options),
        num_train=NUM_TRAIN,
        num_eval=NUM_EVAL,
        num_symbols=NUM_PIECES if of_pieces else len(Characters()),
        longest=options.get("max_seconds", MAX_SECONDS),
        **({"symbols_per_second": _PIECES_PER_SECOND} if of_pieces else {}),
    )


def _folder(data_dir: Path, fake: int) -> Path:
    return data_dir / (f"librispeech_fake_{fake}" if fake else "librispeech_index")


def _root(data_dir: Path) -> Path:
    inside = data_dir / "LibriSpeech"
    return inside if inside.is_dir() else data_dir


def _symbols(folder: Path, kind: str) -> Symbols:
    if kind not in ("pieces", "characters"):
        raise UserError(f"--config.data.symbols={kind} is neither pieces nor characters.")
    return Pieces(folder / "pieces.model") if kind == "pieces" else Characters()


# Preparing.


def _index(root: Path, folder: Path) -> dict[str, Any]:
    found: dict[str, list[tuple[str, str]]] = {}
    for split, folders in FOLDERS.items():
        found[split] = []
        for name, count in folders.items():
            if not (root / name).is_dir():
                raise UserError(
                    f"{root / name} is missing; LibriSpeech needs {', '.join(sum(map(list, FOLDERS.values()), []))}: "
                    f"unpack OpenSLR's {name}.tar.gz to {root.parent if root.name == 'LibriSpeech' else root}."
                )
            said = list(transcripts(root, name))
            if len(said) != count:
                raise UserError(
                    f"{root / name} has transcripts of {len(said):,} utterances where {count:,} belong; unpack "
                    f"OpenSLR's {name}.tar.gz again."
                )
            found[split] += said
    return _write_index(root, folder, found) | {"name": "librispeech", "fake": False}


def transcripts(root: Path, name: str) -> Iterator[tuple[str, str]]:
    """Path below `root` and text, in lower case, of every utterance of a folder, in the order of their names."""
    for listing in sorted((root / name).glob("*/*/*.trans.txt")):
        for line in listing.read_text("utf-8").splitlines():
            id, _, text = line.partition(" ")
            yield f"{listing.parent.relative_to(root).as_posix()}/{id}.flac", text.lower()


def _write_index(root: Path, folder: Path, found: Mapping[str, list[tuple[str, str]]]) -> dict[str, Any]:
    """Writes lengths and transcripts of utterances, path and text each, by split."""
    with progress.step(f"learning {NUM_PIECES:,} pieces of words"):
        learn([text for _, text in found["train"]], NUM_PIECES, folder / "pieces.model")
    facts: dict[str, Any] = {}
    for split, said in found.items():
        paths, texts = [path for path, _ in said], [text for _, text in said]
        fields = {"path": np.array([path.encode() for path in paths], _PATH), "length": _lengths(root, paths)}
        for kind in ("pieces", "characters"):
            encode = _symbols(folder, kind).encode
            symbols = Ragged.of([encode(text) for text in texts], np.dtype(np.int16))
            fields |= {kind: symbols.values, f"{kind}_starts": symbols.starts}
            facts[f"{split}_{kind}"] = len(symbols.values)
        prepared.save_arrays(folder, split, fields)
        facts[f"num_{split}"] = len(said)
    (folder / "eval_texts.txt").write_text("".join(f"{text}\n" for _, text in found["eval"]), "utf-8")
    return facts


def _lengths(root: Path, paths: list[str]) -> np.ndarray:
    """Samples of each file, [N] int32.

    Raises:
        UserError: a file is missing or damaged.
    """
    import soundfile

    def length(path: str) -> int:
        try:
            return soundfile.info(root / path).frames
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{root / path} is missing or damaged ({prepared.one_line(error)}); unpack its archive again."
            ) from None

    with (
        futures.ThreadPoolExecutor(base.num_threads({})) as pool,
        progress.step(f"looking into {len(paths):,} files", len(paths), "files") as advance,
    ):
        found = np.empty(len(paths), np.int32)
        for n, frames in enumerate(pool.map(length, paths)):
            found[n] = frames
            advance(1)
    return found


def _read(
    folder: Path, root: Path, facts: Mapping[str, Any], split: str, kind: str, max_seconds: float
) -> Utterances:
    """The utterances of a split that are not longer."""
    count, total = facts[f"num_{split}"], facts[f"{split}_{kind}"]

    def array(name: str, size: int, dtype: Any) -> np.ndarray:
        return prepared.open_array(folder / f"{split}_{name}.npy", (size,), np.dtype(dtype))

    lengths, paths = array("length", count, np.int32), array("path", count, _PATH)
    symbols = Ragged(array(kind, total, np.int16), array(f"{kind}_starts", count + 1, np.int64))
    texts = (folder / "eval_texts.txt").read_text("utf-8").splitlines() if split == "eval" else []
    if symbols.starts[0] != 0 or symbols.starts[-1] != total or texts and len(texts) != count:
        raise UserError(f"{folder} is damaged (its counts do not fit); {prepared.AGAIN}")
    kept = np.flatnonzero(lengths <= max_seconds * SAMPLE_RATE)
    if len(kept) == 0:
        raise UserError(f"No utterance in {folder} is as short as {max_seconds} seconds; allow longer ones.")
    return Utterances(
        FlacSounds(root, paths[kept], lengths[kept]),
        symbols.chosen(kept),
        [texts[n] for n in kept] if texts else (),
    )


def _make_up(count: int, folder: Path) -> dict[str, Any]:
    """Noise in FLAC files, with transcripts of made-up words, in the folders of the real set."""
    import soundfile

    random = np.random.default_rng(0)
    letters = list(Characters.ALL[1:-1])
    words = ["".join(random.choice(letters, size)) for size in random.integers(2, 9, 3_000)]
    for split, number in (("train", count), ("eval", max(1, count // 8))):
        chapter = folder / next(iter(FOLDERS[split])) / "1" / "2"
        chapter.mkdir(parents=True)
        lines = []
        with progress.step(f"making up {number:,} utterances", number, "utterances") as advance:
            for n in range(number):
                seconds = random.uniform(*_FAKE_SECONDS)
                noise = random.normal(0, _FAKE_LEVEL, int(seconds * SAMPLE_RATE)).astype(np.int16)
                soundfile.write(chapter / f"1-2-{n:04}.flac", noise, SAMPLE_RATE)
                said = " ".join(random.choice(words, 1 + int(2.5 * seconds)))
                lines.append(f"1-2-{n:04} {said.upper()}\n")
                advance(1)
        (chapter / "1-2.trans.txt").write_text("".join(lines), "utf-8")
    found = {split: list(transcripts(folder, next(iter(folders)))) for split, folders in FOLDERS.items()}
    return _write_index(folder, folder, found) | {"name": folder.name, "fake": True}
