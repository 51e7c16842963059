"""Checkpoints: the state, and one position from which any number of processes resumes.

Orbax writes them in the background, every process its own part, and keeps the newest few. Each is sealed
with digests of its files; one that is damaged, or was not finished, is set aside, and the one before it is
taken. A checkpoint of one layout is restored into another. The position is the global step: with the batch
size it says epoch and example, and every data set yields the same rows from there on, however many
processes read it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.parallel import distributed
from mlperf_jax.training import digests
from mlperf_jax.trees import named_leaves
from mlperf_jax.workload import State

SCHEMA_VERSION = 1
_POLL_SECONDS = 0.02
_LEAST_SLICE = 2**20  # bytes of an array that a device writes where others hold the same


@dataclasses.dataclass(frozen=True)
class Position:
    """Where in a run a checkpoint stands.

    Attributes:
        step: global steps done.
        epoch, example: the same in the data: full epochs done, and examples of the current one.
        log_position: bytes of the run's log that stand for what was done by then.
        evaluated: False where the state is to be evaluated before training goes on.
        frozen: fingerprint of what the state holds and the checkpoint leaves out; "" where it holds all.
    """

    step: int
    epoch: int
    example: int
    log_position: int
    evaluated: bool = True
    frozen: str = ""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: their own folder, made here.
        keep: how many of the newest to keep.
        read_only: nothing is saved, and a damaged one stays where it is.

    Raises:
        UserError: the folder cannot be used.
    """

    def __init__(self, folder: Path, *, keep: int = 2, read_only: bool = False) -> None:
        import orbax.checkpoint as ocp

        self.folder = folder.absolute()
        _hush()
        # Else Orbax compiles a slice for every shape of what lies whole on several devices, however small.
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LEAST_SLICE)
        ocp.type_handlers.register_type_handler(jax.Array, arrays, override=True)
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint digests")
        self._sealing: Future[None] | None = None
        self._leaving = threading.Event()
        self._newest = self._newest_whole(read_only)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        # Named here, because a manager that has saved nothing itself cannot tell what an item is.
        handlers = {"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()}
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        except OSError as error:
            raise UserError(
                f"{self.folder}: {error.strerror}; mend that or use another --results_dir."
            ) from error

    def save(self, state: State, position: Position) -> None:
        """Copies the state off the devices, and writes it while the caller goes on.

        A step that was saved already is not saved again: its state would be the same.

        Raises:
            UserError: an earlier write failed, as on a full disk.
        """
        import orbax.checkpoint as ocp

        if position.step == self._newest:
            return
        extra = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(position)}
        with self._writing():
            self._manager.save(
                position.step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(extra)
                ),
                force=True,
            )
        self._newest = position.step
        if jax.process_index() == 0:
            self._sealing = self._sealer.submit(self._seal, position.step)

    def position(self) -> Position | None:
        """Where the newest checkpoint stands, None where there is none.

        Raises:
            UserError: it is of an unknown schema, or damaged.
        """
        import orbax.checkpoint as ocp

        step = self._newest
        if step is None:
            return None
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(position=ocp.args.JsonRestore()))
            position = dict(restored["position"])
            version = position.pop("schema_version", None)
            if version != SCHEMA_VERSION:
                raise UserError(
                    f"{self.folder / str(step)} has schema_version {version!r} and this version reads "
                    f"{SCHEMA_VERSION}; use the version that wrote it, or another --results_dir."
                )
            return Position(**position)

    def restore(self, struct: State) -> State:
        """Reads the newest checkpoint into the shapes and places of `struct`.

        Raises:
            UserError: it is of another model, or damaged.
        """
        import orbax.checkpoint as ocp

        step = self._step()
        with self._reading(step):
            self._refuse_other_model(step, struct)
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(struct))
            )
        return restored["state"]

    def restore_part(self, struct: State) -> State:
        """Reads only those entries of the newest checkpoint that `struct` has, as for inference.

        Raises:
            UserError: it is of another model, or damaged.
        """
        import orbax.checkpoint as ocp

        step = self._step()
        args = ocp.args.PyTreeRestore(
            struct, restore_args=ocp.checkpoint_utils.construct_restore_args(struct), partial_restore=True
        )
        with self._reading(step), contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
            self._refuse_other_model(step, struct, entries=struct.keys())
            return reader.restore(self.folder / str(step) / "state", args=args)

    def _refuse_other_model(
        self, step: int, struct: State, *, entries: Collection[str] | None = None
    ) -> None:
        found = self._manager.item_metadata(step)["state"]
        found = _shapes({entry: found[entry] for entry in found if entries is None or entry in entries})
        asked = _shapes(struct)
        for name in sorted(found.keys() | asked.keys()):
            if found.get(name) != asked.get(name):
                raise UserError(
                    f"{self.folder / str(step)} holds another model: {name} is {found.get(name, 'not there')} in it "
                    f"and {asked.get(name, 'not there')} here; use the flags it was made with, or another --results_dir."
                )

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
            UserError: a write failed.
        """
        with self._writing():
            self._manager.wait_until_finished()
            if self._sealing:
                self._sealing.result()

    def close(self) -> None:
        """Ends the threads. Whoever wants to know that everything is on disk calls `wait` before."""
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self._manager.close()
        self._leaving.set()
        self._sealer.shutdown()

    @property
    def newest(self) -> int | None:
        """The step of the newest that is whole."""
        return self._newest

    def _step(self) -> int:
        if self._newest is None:
            raise UserError(f"There is no whole checkpoint in {self.folder}; name another folder.")
        return self._newest

    def _seal(self, step: int) -> None:
        """Writes the digests of a checkpoint when Orbax, in threads of its own, has given it its name."""
        folder = self.folder / str(step)
        while not folder.is_dir():
            if self._leaving.wait(_POLL_SECONDS) and not folder.is_dir():
                return  # it could not be written
        digests.seal(folder)

    def _newest_whole(self, read_only: bool) -> int | None:
        """The newest step whose files are as they were written. Of several processes the first looks for all."""
        newest = -1
        if jax.process_index() == 0 and self.folder.is_dir():
            steps = sorted((int(p.name) for p in self.folder.iterdir() if p.name.isdigit()), reverse=True)
            for step, before in itertools.zip_longest(steps, steps[1:]):
                if not (damage := digests.damage(self.folder / str(step))):
                    newest = step
                    break
                self._tell_damage(step, before, damage, read_only)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            newest = int(multihost_utils.broadcast_one_to_all(np.int32(newest)))
        return None if newest < 0 else newest

    def _tell_damage(self, step: int, before: int | None, damage: str, read_only: bool) -> None:
        """Says what is wrong with a checkpoint and, where others will be written, moves it out of the way."""
        where, moved = self.folder / str(step), ""
        if not read_only:
            aside = next(path for path in _names(self.folder.parent / f"damaged_{step}") if not path.exists())
            try:
                os.replace(where, aside)
            except OSError as error:
                raise UserError(
                    f"{where} is damaged ({damage}) and cannot be moved ({error.strerror}); remove it and run the "
                    "same command again."
                ) from error
            moved = f", now in {aside}"
        then = "there is none before it" if before is None else f"that of step {before} is taken"
        print(
            f"mlperf_jax: the checkpoint of step {step} is damaged ({where}: {damage}{moved}); {then}.",
            file=sys.stderr,
            flush=True,
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns a failure into a sentence. What was half written is under no step's name and not read again."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if told := distributed.without_partner(error):
                raise UserError(told) from error
            if isinstance(error, RuntimeError):
                raise
            raise UserError(
                f"A checkpoint in {self.folder} could not be written ({_reason(error)}); "
                "free space or mend the folder and run the same command again."
            ) from error

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns a failure to read a checkpoint whose files are as they were written into a sentence."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # Orbax raises all kinds for damaged files, a bare Exception among them.
            older = [known for known in self._manager.all_steps() if known < step]
            then = f"continues from step {max(older)}" if older else "begins again"
            raise UserError(
                f"{self.folder / str(step)} is damaged ({_reason(error)}); "
                f"remove it and run the same command again: the run then {then}."
            ) from error


@functools.cache
def _hush() -> None:
    """Leaves out the pages of traceback that Orbax shows for what it also raises.

    It logs every failure through absl; and when one of its writes fails, the others of the same
    checkpoint call back into an event loop that is closed by then, or fail with nobody waiting, which
    asyncio logs.
    """
    logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: not _raised_by_orbax(record))
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_others


def _names(path: Path) -> Iterator[Path]:
    """A name and, where it is taken, others like it."""
    yield path
    yield from (path.with_name(f"{path.name}_{n}") for n in itertools.count(1))


def _raised_by_orbax(record: logging.LogRecord) -> bool:
    if not record.exc_info:
        return False
    frames = traceback.walk_tb(record.exc_info[2])
    # What Orbax awaits of tensorstore fails in C++, with no frame at all.
    of_tensorstore = "tensorstore_spec" in str(record.exc_info[1])
    return of_tensorstore or any("/orbax/" in frame.f_code.co_filename for frame, _ in frames)


def _reason(error: Exception) -> str:
    """What storage libraries say in many lines, without its middle: the cause comes last."""
    text = " ".join(str(error).partition(" [tensorstore_spec")[0].split()) or type(error).__name__
    return text if len(text) <= 240 else f"{text[:80]} ... {text[-150:]}"


def _shapes(tree: Any) -> dict[str, str]:
    """Path -> dtype and shape of every array."""
    leaves = named_leaves(tree).items()
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves if hasattr(leaf, "shape")}
