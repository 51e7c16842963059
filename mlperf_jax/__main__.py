"""The commands of mlperf_jax, each a module of its own; --help after one shows its flags."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from mlperf_jax import cli
from mlperf_jax.errors import UserError

COMMANDS = (
    "main",
    "prepare",
    "plan",
    "compare",
    "report",
    "check",
    "package",
    "import_weights",
    "serve",
    "gtp",
    "predict_moves",
)
FLAGS = cli.define(cli.HELP)


def main(argv: Sequence[str] | None = None) -> int:
    """Lists the commands and returns the exit status: 0, or 2 if something else was asked for."""
    return cli.run(_command, argv)


def _command(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        rest = " ".join(arguments[1:])
        raise UserError(
            f"Commands are modules; write: python -m mlperf_jax.{arguments[0]} {rest}".rstrip() + "."
        )
    if arguments and not arguments[0].startswith("-"):
        raise UserError(f"There is no command {arguments[0]!r}; there are {', '.join(COMMANDS)}.")
    cli.parse_flags(FLAGS, arguments)
    width = max(map(len, COMMANDS))
    print(f"{__doc__}\n")
    for name in COMMANDS:
        print(f"  python -m mlperf_jax.{name:<{width}}  {_about(name)}")
    return 0


def _about(name: str) -> str:
    """The first line of a command's docstring, without importing what it needs."""
    source = Path(__file__).with_name(f"{name}.py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
