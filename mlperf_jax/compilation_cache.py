"""Compiled programs, kept on disk: the second command of its kind compiles nothing.

jax decides what a program is kept under (itself, the compiler's version and options, the devices), and hands
over bytes. The files are ours: jax's own are not held against a digest when they are read, stay when they are
damaged, and are bounded only where a package is installed that nothing else here needs. Whatever is wrong
with a file or with the folder, the program is compiled.

Who can write into the folder can have code run by whoever reads it, so it is made for its owner alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

OFF = "none"
MOST_BYTES = 4 << 30
"""What a folder may hold; what was not used for the longest time goes first."""

_ENDING = ".program"
_events: Counter[str] = Counter()  # what jax told of its programs, in this process


def user_folder() -> Path:
    """Where the user's programs keep what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlperf_jax"


def use(folder: str | None) -> None:
    """Says where jax keeps what it compiles; to be called by every process alike, before it compiles anything.

    Processes of one run keep programs only in a folder that they share: compilers that work together, as GPUs'
    do to choose kernels, would wait for those of processes that found the program and do not compile it.

    Args:
        folder: where; "none" for nowhere; None for $JAX_COMPILATION_CACHE_DIR, or else ~/.cache/mlperf_jax/xla.
            What is no path, as gs://bucket/folder, is left to jax's own files.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    asked = folder or os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(user_folder() / "xla")
    jax.config.update("jax_compilation_cache_dir", None)
    place = Path(asked).expanduser() if asked != OFF and "://" not in asked else None
    if jax.distributed.is_initialized():
        from mlperf_jax.parallel import distributed

        if not distributed.all_see(place) and place is not None:
            asked, place = OFF, None
            if jax.process_index() == 0:
                _say("the processes do not share a folder for them")
    compilation_cache.reset_cache()
    if asked == OFF:
        return
    if place is not None:
        _keep_in(Files(place))
    jax.config.update("jax_compilation_cache_dir", str(place or asked))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _listen()


def _keep_in(files: Files) -> None:
    """jax has no public way to bring files of one's own; this one is the same from 0.10 to 0.12."""
    from jax._src import compilation_cache

    compilation_cache.get_file_cache = lambda _: (files, str(files.folder))  # type: ignore


@functools.cache
def _listen() -> None:
    import jax

    jax.monitoring.register_event_listener(lambda event, **_: _events.update((event,)))


def is_used() -> bool:
    """Whether programs are kept."""
    import jax

    config: Any = jax.config  # its options are attributes that types do not know
    return bool(config.jax_enable_compilation_cache and config.jax_compilation_cache_dir)


def found() -> int:
    """How many programs this process has found and so not compiled."""
    return _events["/jax/compilation_cache/cache_hits"]


class Files:
    """jax's `CacheInterface`: a file for each program, a digest and then what jax gave.

    Args:
        folder: where, made when the first program is kept.
        most_bytes: what it may hold.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self.folder = folder
        self._most = most_bytes
        self._held: int | None = None
        self._refused = False

    def get(self, key: str) -> bytes | None:
        """What was kept, None if nothing was; what is damaged is removed."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        size = hashlib.sha256().digest_size
        if hashlib.sha256(content[size:]).digest() != content[:size]:
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # of a folder that is only read
            os.utime(path)  # the time of its last use, by which room is made
        return content[size:]

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program; where that cannot be done, says so once."""
        if self._refused:
            return
        content = hashlib.sha256(value).digest() + value
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(len(content))
            self._write(self._path(key), content)
        except OSError as error:
            self._refused = True
            _say(f"{self.folder}: {error.strerror or error}")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}-{_processor()}{_ENDING}"

    def _write(self, path: Path, content: bytes) -> None:
        """Other processes see all of it or nothing; a power failure may leave less, which the digest tells."""
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix="new", suffix=_ENDING)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _make_room(self, size: int) -> None:
        if self._held is None or self._held + size > self._most:
            self._held = self._without_oldest(self._most - size)
        self._held += size

    def _without_oldest(self, most: int) -> int:
        """Removes what was not used for the longest time until `most` bytes are left; returns how many are."""
        files = []
        for path in self.folder.glob(f"*{_ENDING}"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # another process made room
            files.append((status.st_mtime_ns, status.st_size, path))
        held = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if held <= most:
                break
            path.unlink(missing_ok=True)
            held -= size
        return held


@functools.cache
def _processor() -> str:
    """Stands for the processor's instructions, all of which XLA uses: a home is often shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:8]


def _say(why: str) -> None:
    print(
        f"mlperf_jax: compiled programs are not kept ({why}); --compilation_cache=DIR names another folder, "
        f"--compilation_cache={OFF} none.",
        file=sys.stderr,
        flush=True,
    )
