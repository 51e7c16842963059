"""What the commands have in common: absl flags, help worth reading, mistakes in a sentence, exit statuses."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import flags

import mlperf_jax
from mlperf_jax import aborts, terminal
from mlperf_jax.errors import Stopped, UserError, shortage

_CONFIG = "--config."
_MEANT = {
    "--config.batch_size": (
        "batch_size",
        "batchsize",
        "batch",
        "bs",
        "global_batch_size",
        "train_batch_size",
    ),
    "--config.max_epochs": ("epochs", "epoch", "num_epochs", "max_epochs", "n_epochs"),
    "--config.optimizer.base_lr": ("lr", "learning_rate", "base_lr"),
    "--config.gradient_accumulation_steps": (
        "accumulation",
        "gradient_accumulation",
        "grad_accum",
        "accum_steps",
    ),
    "--config.precision": ("precision", "dtype", "fp16", "bf16", "fp32", "amp"),
    "--config.target": ("target", "quality_target", "target_accuracy"),
    "--results_dir": (
        "output",
        "output_dir",
        "out",
        "outdir",
        "log_dir",
        "logdir",
        "checkpoint_dir",
        "save_dir",
    ),
    "--data_dir": ("data", "dataset", "dataset_path", "data_path"),
    "--workload": ("model", "benchmark", "arch", "network"),
    "--platform": ("device", "backend", "accelerator"),
    "--num_processes": ("world_size", "nnodes", "num_nodes"),
    "--process_id": ("rank", "node_rank"),
    "--coordinator": ("master_addr", "rdzv_endpoint", "init_method"),
}
"""Flags of this project: what other programs call them."""

_SAID = {
    (
        "gpus",
        "gpu",
        "num_gpus",
        "ngpus",
        "devices",
        "num_devices",
        "n_gpus",
    ): "all devices that --platform=gpu (or "
    "tpu) shows are used; fewer with --mesh=data:N or CUDA_VISIBLE_DEVICES, and --cpu_devices=N shows a CPU as several",
    (
        "resume",
        "resume_from",
        "restart",
        "continue",
        "load",
    ): "the same command again continues an unfinished run",
}
"""What other programs have a flag for and this one does by itself."""

Record = TypeVar("Record")

Definition = Callable[..., object]
"""One of absl's `flags.DEFINE_*` with everything but `flag_values`."""


def text(name: str, help: str, default: str | None = None) -> Definition:
    return functools.partial(flags.DEFINE_string, name, default, help)


def integer(
    name: str, help: str, default: int | None = 0, *, least: int = 0, most: int | None = None
) -> Definition:
    return functools.partial(flags.DEFINE_integer, name, default, help, lower_bound=least, upper_bound=most)


def number(name: str, help: str, default: float | None = None, *, least: float | None = None) -> Definition:
    return functools.partial(flags.DEFINE_float, name, default, help, lower_bound=least)


def choice(name: str, choices: Sequence[str], help: str, default: str | None = None) -> Definition:
    return functools.partial(flags.DEFINE_enum, name, default, list(choices), help)


def switch(name: str, help: str) -> Definition:
    return functools.partial(flags.DEFINE_bool, name, False, help)


HELP = switch("help", "Show this, and end; also -h.")
_VERSION = switch("version", "Show the version, and end.")


def define(*definitions: Definition) -> flags.FlagValues:
    """The flags of a command, in the order in which --help shows them."""
    values = flags.FlagValues()
    for definition in (*definitions, _VERSION):
        definition(flag_values=values)
    return values


def record(kind: Callable[..., Record], values: flags.FlagValues, **others: Any) -> Record:
    """A record of what flags say.

    Args:
        kind: a dataclass, whose fields are named as the flags are.
        values: the flags; those that are no field of it are left out.
        others: fields that are no flags, or are not of a flag's type.
    """
    named = {name: values[name].value for name in inspect.signature(kind).parameters if name in values}
    return kind(**(named | others))


class _Helped(Exception):
    """--help or --version was asked for, and answered."""


@terminal.command
def run(
    command: Callable[[list[str]], int],
    argv: Sequence[str] | None,
    *,
    interrupted: str = "the same command begins again",
    reader_gone: int | None = None,
) -> int:
    """Runs a command and returns its exit status.

    Args:
        command: takes the arguments, returns the status.
        argv: the arguments; None for the process's own.
        interrupted: what to know after Ctrl-C.
        reader_gone: the status if who reads the output has gone, as `| head` does; None: as `terminal.command`.
    """
    try:
        with aborts.explained():
            status = command(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()  # a full disk is told here, not when the interpreter ends
            return status
    except _Helped:
        return 0
    except UserError as error:
        print(f"mlperf_jax: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"mlperf_jax: {stopped}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print(f"mlperf_jax: interrupted; {interrupted}.", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if reader_gone is None:
            raise
        return reader_gone
    except Exception as error:
        if not (sentence := shortage(error)):
            raise
        print(f"mlperf_jax: {sentence}", file=sys.stderr)
        return 2


def parse(
    values: flags.FlagValues, arguments: list[str], *, config: bool = False
) -> tuple[list[str], list[str]]:
    """Parses a command's flags into `values`; `config`: whether `--config.KEY=value` is among them.

    Returns:
        The `--config.KEY=value` arguments, and those that are no flags.

    Raises:
        UserError: a flag is unknown (with the nearest known one) or has a wrong value.
    """
    overrides = [a for a in arguments if a.startswith(_CONFIG)]
    arguments = ["--help" if a == "-h" else a for a in arguments]
    if "--version" in arguments:
        print(f"mlperf_jax {mlperf_jax.__version__}")
        raise _Helped
    values.unparse_flags()
    try:
        rest = values(["mlperf_jax", *(a for a in arguments if not a.startswith(_CONFIG))])
    except flags.Error as error:
        raise UserError(f"{_mistake(values, error, config)}; --help shows all flags.") from error
    for name in values:
        if isinstance(value := values[name].value, float) and not math.isfinite(value):
            raise UserError(f"--{name}={value} is no finite number; give one.")
    return overrides, rest[1:]


def parse_flags(values: flags.FlagValues, arguments: list[str], *, doc: str | None = None) -> list[str]:
    """As `parse`, for a command that takes flags alone; returns the `--config.KEY=value` arguments.

    A command that takes these too gives its `doc`, and leaves --help to this function.
    """
    overrides, rest = parse(values, arguments, config=doc is not None)
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag; write --name=value, --help shows all flags.")
    if doc is not None and values.help:
        print(help_text(doc, values, config=True))
        raise _Helped
    return overrides


def _mistake(values: flags.FlagValues, error: flags.Error, config: bool) -> str:
    """absl's words, where they name Python's functions in other ones."""
    if isinstance(error, flags.UnrecognizedFlagError):
        if meant := _meant(values, error.flagname.replace("-", "_").lower(), config):
            return f"There is no flag --{error.flagname}{meant}"
        close = difflib.get_close_matches(error.flagname, [*values, *(["config.KEY"] if config else [])], n=1)
        return f"There is no flag --{error.flagname}" + (f", did you mean --{close[0]}?" if close else "")
    text = str(error).splitlines()[0]
    for reason, plainly in (
        ("invalid literal for int", "not an integer"),
        ("('Non-boolean", "neither true nor false"),
    ):
        text = text.partition(reason)[0] + plainly if reason in text else text
    return text


def _meant(values: flags.FlagValues, name: str, config: bool) -> str:
    """What to write for a flag of other programs, "" for one that is none of them, or of another command."""
    for ours, theirs in _MEANT.items():
        if name in theirs and (config if ours.startswith(_CONFIG) else ours[2:] in values):
            return f", did you mean {ours}?"
    return next((f"; {said}" for theirs, said in _SAID.items() if name in theirs and "runs" in values), "")


def help_text(doc: str, values: flags.FlagValues, *, config: bool = False) -> str:
    """The module's docstring and a line for each flag.

    Args:
        doc: the docstring.
        values: the flags.
        config: whether the command takes `--config.KEY=value`.
    """
    rows = [_help_row(values[name]) for name in values]
    if config:
        rows.append(
            ("--config.KEY=<value>", "Change any number of the workload's config (configs/<workload>.py).")
        )
    width = max(len(shown) for shown, _ in rows)
    return "\n".join([doc.strip(), "", "Flags:", *(f"  {shown:<{width}}  {text}" for shown, text in rows)])


def _help_row(flag: flags.Flag) -> tuple[str, str]:
    choices = getattr(flag.parser, "enum_values", ())
    kind = "|".join(choices) if sum(map(len, choices)) < 16 else "choice"
    shown = f"--{flag.name}" if flag.boolean else f"--{flag.name}=<{kind if choices else flag.flag_type()}>"
    text = flag.help.rpartition(">: ")[2]  # absl writes the choices of an enum before its help
    named = f" {', '.join(choices)}." if kind == "choice" else ""
    default = "" if flag.default in (None, False) else f" [{flag.default}]"
    return shown, f"{text}{named}{default}"
