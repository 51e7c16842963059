"""Compiles a program for a topology, once: the compiler's answer is kept on disk.

What is kept is what `plan` reads, the optimised program as text and the memory figures, not the
executable; so a better reading of it later needs no new compilation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax

from mlperf_jax.compilation_cache import user_folder

SCHEMA_VERSION = 2

_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
"""Variables of the environment that the compilers read their flags from."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per device, as the compiler states them.

    Attributes:
        arguments: state and batch.
        outputs: new state and metrics.
        aliased: outputs that take over the memory of donated arguments.
        temporaries: activations kept for the backward pass, gradients and scratch.
        code: the program itself.
        peak: the most that is in use at any moment, arguments and outputs among it. This, and not `total`, is
            what the TPU compiler holds against the chip.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    peak: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the compiler said.

    Attributes:
        hlo: the optimised and scheduled program, "" where it does not fit.
        memory: None where it does not fit.
        does_not_fit: the compiler's own words, or None.
        seconds: what compiling took when it was done.
        compiler: name and version.
        cached: whether it was on disk.
    """

    hlo: str
    memory: Memory | None
    does_not_fit: str | None
    seconds: float
    compiler: str
    cached: bool = False


def default_cache_dir() -> Path:
    return user_folder() / "plan"


def compile_program(
    lowered: jax.stages.Lowered, *, target: str, compiler: str, cache_dir: Path, label: str
) -> Answer:
    """Compiles a lowered program, or returns what is kept of the last time under the same compiler flags.

    Args:
        lowered: the program.
        target: the topology and the order of its devices in the mesh; part of the key.
        compiler: name and version; part of the key.
        cache_dir: where answers are kept.
        label: what the progress line calls it.
    """
    flags = [os.environ[name] for name in _FLAGS if os.environ.get(name)]
    key = hashlib.sha256("\0".join((target, compiler, lowered.as_text(), *flags)).encode()).hexdigest()
    path = cache_dir / f"{key}.json.gz"
    kept = _read(path)
    if kept is not None:
        return kept
    with _progress(label):
        answer = _compile(lowered, compiler)
    _write(path, answer)
    return answer


def _compile(lowered: jax.stages.Lowered, compiler: str) -> Answer:
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not _is_out_of_memory(str(error)):
            raise
        return Answer("", None, _out_of_memory(str(error)), time.perf_counter() - start, compiler)
    seconds = time.perf_counter() - start
    return Answer(*text_and_memory(compiled), None, seconds, compiler)


def text_and_memory(compiled: jax.stages.Compiled) -> tuple[str, Memory]:
    """The optimised and scheduled program as text, and what it takes of a device.

    Raises:
        ValueError: the compiler states one of them not.
    """
    text, stats = compiled.as_text(), compiled.memory_analysis()
    if text is None or stats is None:
        raise ValueError("the compiler states no program, or no figures of memory")
    memory = Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        peak=stats.peak_memory_in_bytes,
    )
    return text, memory


def _is_out_of_memory(text: str) -> bool:
    return "RESOURCE_EXHAUSTED" in text or "exceeds available HBM" in text


def _out_of_memory(text: str) -> str:
    """The sentences of the compiler's message that say how much is needed and how much there is."""
    said = [line.strip() for line in text.splitlines() if re.search(r"(?i)hbm|memory|exceed", line)]
    return " ".join(said[:3]) or text.strip().splitlines()[0]


def _read(path: Path) -> Answer | None:
    try:
        record = json.loads(gzip.decompress(path.read_bytes()))
        if record.pop("schema_version") != SCHEMA_VERSION:
            return None
        memory = record.pop("memory")
        return Answer(memory=Memory(**memory) if memory else None, cached=True, **record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, RecursionError, zlib.error):
        return None  # A damaged entry is compiled again and replaced.


def _write(path: Path, answer: Answer) -> None:
    record = {"schema_version": SCHEMA_VERSION} | dataclasses.asdict(answer)
    del record["cached"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(gzip.compress(json.dumps(record).encode()))
    os.replace(file.name, path)


@contextlib.contextmanager
def _progress(label: str) -> Iterator[None]:
    """Says on the standard error what is compiling: a running clock on a terminal, else two lines."""
    done = threading.Event()
    start = time.perf_counter()
    terminal = sys.stderr.isatty()

    def show() -> None:
        while not done.wait(1):
            print(
                f"\rcompiling {label}: {time.perf_counter() - start:.0f} s ",
                end="",
                file=sys.stderr,
                flush=True,
            )

    thread = threading.Thread(target=show, daemon=True)
    if terminal:
        thread.start()
    else:
        print(f"compiling {label}", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        done.set()
        if terminal:
            thread.join()
        print(
            f"{chr(13) if terminal else ''}compiled {label}: {time.perf_counter() - start:.0f} s",
            file=sys.stderr,
        )
