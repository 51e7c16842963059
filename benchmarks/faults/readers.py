"""Flipped bits in what runs leave, and damaged files of every kind that a reader takes.

A reader survives if it refuses with the error that it promises, or reads, and is not slower than it should
be. A checkpoint and a digest must moreover never be read as something else.
"""

from __future__ import annotations

import functools
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.fault import TINY, Fault, run
from mlperf_jax.errors import UserError

FLIPS_EACH, MUTANTS_EACH = 40, 60
_SECONDS = 5.0  # of one file, all of which are small

Reader = Callable[[Path], Any]


def flips(folder: Path, random: random.Random) -> Iterator[Fault]:
    """One bit at a time, in the files of a finished run."""
    yield Fault("flips", "none is flipped", functools.partial(_train, folder))
    run_folder = folder / "results/mini/runs/box/resnet/run_0"
    yield from _lazily("checkpoint", FLIPS_EACH, random, lambda seed: _flip_checkpoint(run_folder, seed))
    for what, path, reader in (
        ("result log", folder / "results/mini/results/box/resnet/result_0.txt", _summary),
        ("status.json", run_folder / "status.json", _json),
        ("config.json", run_folder / "config.json", _json),
        ("results, by check", folder / "results/mini/results/box/resnet/result_0.txt", _check),
    ):
        flip = functools.partial(_read_flipped, folder, path, reader)
        yield from _lazily(what, FLIPS_EACH, random, flip)


def parsers(folder: Path, random: random.Random) -> Iterator[Fault]:
    """Samples of each format, cut, repeated, with bytes of other values and numbers that are too large."""
    for what, (sample, promised, reader) in samples(folder).items():
        mutate = functools.partial(_read_mutant, folder, sample, promised, reader)
        yield from _lazily(what, MUTANTS_EACH, random, mutate)


def _lazily(what: str, count: int, random: random.Random, happens: Callable[[int], str]) -> Iterator[Fault]:
    for _ in range(count):
        seed = random.randrange(2**32)
        yield Fault(
            "flips" if count == FLIPS_EACH else "parsers",
            f"{what}, seed {seed}",
            functools.partial(happens, seed),
        )


def _train(folder: Path) -> str:
    folder.mkdir(parents=True)
    ended = run(folder, "main", *TINY, "--results_dir=results")
    return "" if ended.returncode == 1 else f"status {ended.returncode}: {ended.stderr[-300:]}"


def flip(path: Path, random: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def _flip_checkpoint(run_folder: Path, seed: int) -> str:
    """The newest with a flipped bit is set aside, and never read as another."""
    from mlperf_jax.training.checkpoints import Checkpoints

    drawn = random.Random(seed)
    copy = run_folder.parent / "flipped"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run_folder, copy)
    newest, older = sorted(
        (int(p.name) for p in (copy / "checkpoints").iterdir() if p.name.isdigit()), reverse=True
    )[:2]
    files = [
        p for p in sorted((copy / "checkpoints" / str(newest)).rglob("*")) if p.is_file() and p.stat().st_size
    ]
    flip(drawn.choice(files), drawn)
    checkpoints = Checkpoints(copy / "checkpoints")
    found = checkpoints.newest
    checkpoints.close()
    shutil.rmtree(copy)
    return "" if found == older else f"step {found} is taken, not {older}"


def _read_flipped(folder: Path, path: Path, reader: Reader, seed: int) -> str:
    whole = path.read_bytes()
    try:
        flip(path, random.Random(seed))
        return _read(path, UserError, reader)
    finally:
        path.write_bytes(whole)


def _read_mutant(folder: Path, sample: Path, promised: type[Exception], reader: Reader, seed: int) -> str:
    path = folder / f"mutant{sample.suffix}"
    path.write_bytes(mutant(sample.read_bytes(), random.Random(seed)))
    return _read(path, promised, reader)


def _read(path: Path, promised: type[Exception], reader: Reader) -> str:
    start = time.monotonic()
    try:
        reader(path)
    except promised:
        pass
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    seconds = time.monotonic() - start
    return "" if seconds < _SECONDS else f"{seconds:.1f} s"


_SPECIAL = (
    b"",
    b"\x00",
    b"\xff" * 8,
    b"9" * 400,
    b"-1",
    b"1e999",
    b"NaN",
    b'"',
    b"(" * 500,
    b"{" * 500,
    b"\n" * 50,
)


def mutant(data: bytes, random: random.Random) -> bytes:
    """`data` with one to four changes."""
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(data) + 1)
        length = min(random.choice((1, 1, 4, 16, 64)), len(data) - start)
        new = random.choice(
            (
                bytes(random.randrange(256) for _ in range(length)),
                random.choice(_SPECIAL),
                data[start : start + length] * 3,
                b"",
            )
        )
        data = data[:start] + new + data[start + length :]
        if random.random() < 0.1:
            data = data[:start]
    return data


def samples(folder: Path) -> dict[str, tuple[Path, type[Exception], Reader]]:
    """Of each format a file, the error that its reader promises, and the reader."""
    from mlperf_jax.go import records
    from mlperf_jax.results import events

    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        "fc.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "fc.bias": np.zeros(3, np.float32),
    }
    made: dict[str, tuple[bytes | None, type[Exception], Reader]] = {
        "events.txt": (_events(), UserError, events.read_events),
        "facts.json": (b'{"schema_version": 1, "a": [1, 2.5, "x"], "b": {"c": null}}', UserError, _json),
        "game.sgf": (
            b"(;GM[1]FF[4]SZ[9]KM[7.5]PB[a\\]b];B[aa];W[bb](;B[cc])(;B[dd]))",
            records.BadRecord,
            lambda path: list(records.parse(path.read_bytes().decode("utf-8", "replace"))),
        ),
        "accuracy.json": (
            b'[\n{ "seq_id" : 0, "qsl_idx" : 1, "data" : "0A00" },\n{ "seq_id" : 1, "qsl_idx" : 0, "data" : "FF" }\n]\n',
            UserError,
            _answers,
        ),
        "user.conf": (b"*.Server.target_qps = 50\nresnet50.*.min_duration = 600\n# x\n", UserError, _conf),
        "mesh.toml": (
            b'shard_params = "fsdp"\n[mesh]\nfsdp = 4\n[rules]\nbatch = [["fsdp"]]\n',
            UserError,
            _strategy,
        ),
        "weights.npz": (None, UserError, _tensors),
        "weights.safetensors": (None, UserError, _tensors),
    }
    np.savez(folder / "weights.npz", **arrays)
    from safetensors.numpy import save_file

    save_file(arrays, str(folder / "weights.safetensors"))
    for name, (content, _, _) in made.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return {name: (folder / name, promised, reader) for name, (_, promised, reader) in made.items()}


def _events() -> bytes:
    line = (
        ':::MLLOG {"namespace": "", "time_ms": 1700000000000, "event_type": "POINT_IN_TIME", "key": "seed", '
    )
    return (line + '"value": 1, "metadata": {"file": "a.py", "lineno": 3}}\n').encode() * 4


def _json(path: Path) -> Any:
    from mlperf_jax.results.folders import read_json

    return read_json(path)


def _answers(path: Path) -> Any:
    from mlperf_jax.inference.accuracy import read_answers

    return read_answers(path, 2)


def _conf(path: Path) -> Any:
    import loadgen_py as lg

    settings = lg.TestSettings()
    settings.FromConfig(str(path), "resnet50", "Server")
    return settings


def _strategy(path: Path) -> Any:
    from mlperf_jax.parallel import mesh

    return mesh.find_strategy(str(path))


def _tensors(path: Path) -> Any:
    from mlperf_jax.weights import files

    return {name: np.asarray(array) for name, array in files.read_tensors(path).items()}


def _summary(path: Path) -> Any:
    from mlperf_jax.results import summary

    return summary.summarize(path)


def _check(path: Path) -> Any:
    from mlperf_jax.judging.tree import judge_tree

    return judge_tree(path.parents[4])
