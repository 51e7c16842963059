"""Sentences of WordNet's examples, spoken by eSpeak NG: about 4,700 texts of 3 to 8 words by people, voices by rule.

The sentences are those whose words are all among the 2,000 most frequent of the examples (WordNet 3.0, Debian's
`wordnet-base`). Each is said four times to train on, in as many voices, and once where it is evaluated. Voices are an accent
and a variant of it; accents, variants and sentences of the evaluation do not occur in training. It is real text, in
voices that nobody has; each split's `voices.txt` says whose.
"""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from input_pipelines import base, fetch, prepared, progress
from input_pipelines.sound import espeak, utterances
from input_pipelines.sound.symbols import SAMPLE_RATE, Characters
from input_pipelines.sound.utterances import FlatSounds, SpeechDataset, Utterances
from input_pipelines.text.packing import Ragged
from mlperf_jax.errors import UserError

SECONDS = (0.9, 1.2, 1.6, 2.2, 3.5)
NUM_TRAIN, NUM_EVAL = 8_000, 400  # of --synthetic_data, about those of the real set
_MOST_WORDS, _FEWEST, _MOST = 2000, 3, 8
_TIMES = 4  # that a sentence is said in training
_HELD_OUT = 12  # one sentence in so many

_FILES = (
    fetch.PinnedFile(
        "data.adj", 3_155_427, "c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7", "none"
    ),
    fetch.PinnedFile(
        "data.adv", 516_696, "444a63bf3955080ab7524f5079cfc07ff9bc682cb98bdb1db73b0fb9829f1139", "none"
    ),
    fetch.PinnedFile(
        "data.noun", 15_300_280, "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2", "none"
    ),
    fetch.PinnedFile(
        "data.verb", 2_772_517, "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2", "none"
    ),
)
_EXAMPLE = re.compile(r'"([^"]+)"')
_NO_SENTENCE = re.compile(r"[^A-Za-z' ,.;:!?-]")
_WORD = re.compile(r"[a-z']+")

_ACCENTS = {
    "train": ("en-us", "en", "en-gb-scotland", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
    "eval": ("en-us-nyc", "en-gb-x-rp"),
}
# Those that sound like people: no robots and whispers (a voice has voicing), and no echo of a fifth of the voice or more.
_VARIANTS = {
    "train": (
        "f1", "f2", "f4", "m1", "m2", "m3", "m5", "m6", "m8", "Alex", "Andrea", "Annie", "Denis", "Diogo", "Gene",
        "Gene2", "Henrique", "Hugo", "Jacky", "Lee", "Mario", "Michael", "Mike", "Nguyen", "Reed", "Storm", "adam",
        "anika", "antonio", "aunty", "belinda", "boris", "david", "ed", "grandma", "grandpa", "gustave", "ian", "iven",
        "john", "kaukovalta", "linda", "marcelo", "max", "michel", "miguel", "mike2", "norbert", "paul", "pedro",
        "quincy", "rob", "sandro", "steph", "steph2", "travis", "zac",
    ),
    "eval": ("f3", "f5", "m4", "m7", "Andy", "benjamin", "edward", "robert", "shelby", "victor"),
}  # fmt: skip
_RATES, _PITCHES = (150, 211), (30, 71)  # from, and up to but not

_VOICES = "{}_voices.txt"

_SILENCE, _ROOM = 200, 800  # of int16, below which ends are cut off but for so many samples


def sentences(files: Iterable[str]) -> list[str]:
    """The examples in WordNet's files that are short and of frequent words, each once, in alphabetical order."""
    found = [
        _WORD.findall(example.lower())
        for text in files
        for line in text.splitlines()
        if not line.startswith(" ")
        for example in _EXAMPLE.findall(line.partition("|")[2])
        if not _NO_SENTENCE.search(example)
    ]
    counts = collections.Counter(word for words in found for word in words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    frequent = set(ranked[:_MOST_WORDS])
    kept = (words for words in found if _FEWEST <= len(words) <= _MOST and frequent.issuperset(words))
    return sorted({" ".join(words) for words in kept})


def held_out(sentence: str) -> bool:
    """Whether a sentence is evaluated, by its hash."""
    return int(hashlib.sha256(sentence.encode()).hexdigest(), 16) % _HELD_OUT == 0


def manners(split: str, count: int) -> list[espeak.Manner]:
    """How utterances of "train" or "eval" are said, drawn from what that split has."""
    random = np.random.default_rng(list(_ACCENTS).index(split))

    def drawn(of: Sequence[str]) -> list[str]:
        return [of[n] for n in random.integers(len(of), size=count)]

    rates, pitches = (random.integers(*limits, count).tolist() for limits in (_RATES, _PITCHES))
    voices = zip(drawn(_ACCENTS[split]), drawn(_VARIANTS[split]), rates, pitches, strict=True)
    return [espeak.Manner(*manner) for manner in voices]


def at_16_khz(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Sound [S] int16 at another rate, without silence at its ends."""
    from scipy import signal

    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > _SILENCE)
    if len(loud) == 0:
        return samples[:0]
    samples = samples[max(loud[0] - _ROOM, 0) : loud[-1] + _ROOM]
    common = np.gcd(SAMPLE_RATE, sample_rate)
    sound = signal.resample_poly(samples.astype(np.float64), SAMPLE_RATE // common, sample_rate // common)
    return np.clip(np.rint(sound), -(2**15), 2**15 - 1).astype(np.int16)


Say = Callable[[str, espeak.Manner], np.ndarray]
"""(sentence, manner) -> [S] int16 at 16 kHz."""


def write(folder: Path, split: str, texts: Sequence[str], said: Iterable[np.ndarray]) -> dict[str, Any]:
    """Writes utterances of a split, all sound into one array; returns facts for the manifest."""
    lengths = []
    # An .npy file's header has the length, which is known at the end.
    with open(folder / "samples", "wb") as file:
        for sound in said:
            file.write(sound.astype("<i2").tobytes())
            lengths.append(len(sound))
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    samples = np.memmap(folder / "samples", "<i2", "r")
    prepared.save_arrays(folder, split, {"samples": samples, "starts": starts})
    (folder / "samples").unlink()
    (folder / f"{split}_texts.txt").write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return {f"num_{split}": len(texts), f"{split}_samples": int(starts[-1])}


def sources(data_dir: Path) -> list[fetch.Source]:
    """Returns where WordNet can come from, in the order in which they are tried."""
    return [
        fetch.folder(data_dir / "manual" / "wordnet"),
        fetch.folder(Path("/usr/share/wordnet")),
        fetch.debian_package("wordnet-base", "usr/share/wordnet"),
    ]


def prepare(data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Makes DATA_DIR/spoken_sentences unless it is there, and says what it is.

    Raises:
        UserError: texts or voices could not be had from any source, or the disk is full.
    """
    if fake:
        raise UserError("Spoken sentences are few, so there is no --fake set of them; leave --fake out.")

    def build(folder: Path) -> dict[str, Any]:
        with prepared.scratch_folder(folder) as scratch:
            texts = _fetch_sentences(data_dir, scratch)
            voices = scratch / "espeak"
            voices.mkdir()
            espeak.fetch_voices(data_dir, scratch, voices)
            speaker = espeak.Speaker(voices)

            def say(text: str, manner: espeak.Manner) -> np.ndarray:
                return at_16_khz(speaker.say(text, manner), speaker.sample_rate)

            facts: dict[str, Any] = {"name": "spoken_sentences", "fake": False}
            return facts | spoken(folder, texts, say)

    folder = data_dir / "spoken_sentences"
    prepared.prepare_folder(
        folder, build, verify=verify, wanted=[_VOICES.format(split) for split in _ACCENTS]
    )
    return f"{open_dataset(data_dir, {}).description}, in {folder}"


def spoken(folder: Path, texts: Sequence[str], say: Say) -> dict[str, Any]:
    """Has the sentences said, and writes both splits into a folder; returns facts for the manifest."""
    facts: dict[str, Any] = {}
    for split, times in (("train", _TIMES), ("eval", 1)):
        chosen = [text for text in texts if held_out(text) == (split == "eval")] * times
        with progress.step(f"speaking {len(chosen):,} sentences", len(chosen), "sentences") as advance:
            drawn = manners(split, len(chosen))

            def said(
                chosen: Sequence[str] = chosen, drawn: Sequence[espeak.Manner] = drawn
            ) -> Iterable[np.ndarray]:
                for text, manner in zip(chosen, drawn, strict=True):
                    yield say(text, manner)
                    advance(1)

            facts |= write(folder, split, chosen, said())
        voices = [f"{manner.voice}+{manner.variant}" for manner in drawn]
        (folder / _VOICES.format(split)).write_text("".join(f"{voice}\n" for voice in voices), "utf-8")
        facts[f"{split}_voices"] = len(set(voices))
    return facts


def _fetch_sentences(data_dir: Path, scratch: Path) -> list[str]:
    names = ", ".join(file.name for file in _FILES)
    by_hand = f"{names} of WordNet 3.0 into {data_dir / 'manual' / 'wordnet'}"
    files = fetch.fetch("WordNet", _FILES, sources(data_dir), scratch, by_hand=by_hand)
    return sentences(content.decode("latin-1") for content in files.values())


def open_synthetic(options: Mapping[str, Any]) -> SpeechDataset:
    """What `--synthetic_data` makes up; see `open_dataset` for the options."""
    return utterances.open_synthetic(
        "spoken_sentences",
        {"seconds": SECONDS} | dict(options),
        num_train=NUM_TRAIN,
        num_eval=NUM_EVAL,
        num_symbols=len(Characters()),
        longest=3.0,
    )


def open_dataset(data_dir: Path, options: Mapping[str, Any]) -> SpeechDataset:
    """Opens the prepared set.

    Args:
        data_dir: holds the prepared sets.
        options: `seconds`, how long the buckets are; `sorted_epochs` (0), see `SpeechDataset`.

    Raises:
        UserError: it is not prepared, or damaged.
    """
    folder = data_dir / "spoken_sentences"
    facts = prepared.read_manifest(folder)
    train, evaluation = (_read(folder, facts, split) for split in ("train", "eval"))
    hours = train.num_samples.sum() / SAMPLE_RATE / 3600
    return SpeechDataset(
        train,
        evaluation,
        symbols=Characters(),
        seconds=options.get("seconds", SECONDS),
        sorted_epochs=options.get("sorted_epochs", 0),
        fake=facts["fake"],
        description=f"WordNet's examples spoken by eSpeak NG, {len(train):,} train utterances ({hours:.1f} h, "
        f"{facts['train_voices']} voices) and {len(evaluation):,} of evaluation ({facts['eval_voices']} others)",
        num_threads=base.num_threads(options),
    )


def _read(folder: Path, facts: Mapping[str, Any], split: str) -> Utterances:
    count, total = facts[f"num_{split}"], facts[f"{split}_samples"]
    samples = prepared.open_array(folder / f"{split}_samples.npy", (total,), np.dtype("<i2"))
    starts = np.asarray(prepared.open_array(folder / f"{split}_starts.npy", (count + 1,), np.dtype(np.int64)))
    texts = (folder / f"{split}_texts.txt").read_text("utf-8").splitlines()
    if len(texts) != count or starts[0] != 0 or starts[-1] != total or (np.diff(starts) < 0).any():
        raise UserError(f"{folder} is damaged (its counts do not fit); {prepared.AGAIN}")
    alphabet = Characters()
    symbols = Ragged.of([alphabet.encode(text) for text in texts], np.dtype(np.int32))
    return Utterances(FlatSounds(samples, starts), symbols, texts)
