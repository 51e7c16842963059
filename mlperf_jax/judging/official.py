"""The official checkers of training (mlperf-logging), run as one source of findings.

`compliance_checker` evaluates the expressions of its YAML files on a log's values; which file comes next
is formed from a value of the log, so that a log is only given to it where these values are plain names.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from mlperf_jax.errors import UserError
from mlperf_jax.judging.findings import Finding, one_line
from mlperf_jax.regular import open_regular
from mlperf_jax.rounds import training_rules

# Of benchmarks whose name went on to mean something else, or whose later rulesets ask for another
# reference: what this project's own runs are made by. Ruleset 0.6.0 names NCF, of v0.5, and has no rules for it.
_OWN_RULESETS: Mapping[str, str | None] = {"ssd": "1.1.0", "dlrm_dcnv2": "4.0.0", "ncf": None}
# Keys whose values become part of a YAML file's name.
_NAMING = ("submission_division", "submission_benchmark", "opt_name")
_MOST_BYTES = 256 << 20
_LONGEST_LINE = 1 << 14
_MOST_DAMAGED = 10  # lines told one by one
_MEND = "Log what the ruleset's YAML in mlperf_logging/compliance_checker asks for."


def rulesets() -> list[str]:
    """The rulesets of training that the installed package has, oldest first."""
    found = (re.fullmatch(r"training_(\d+)\.(\d+)\.(\d+)", path.name) for path in _folder().iterdir())
    return [
        ".".join(match.groups())
        for match in sorted(filter(None, found), key=lambda m: [*map(int, m.groups())])
    ]


def find_ruleset(benchmark: str, round_name: str) -> str | None:
    """The ruleset to judge a result by: that of its round, for runs of our own the latest that has the benchmark.

    Returns:
        e.g. "4.0.0"; None if there is none, as for v0.5.
    """
    if round_name in training_rules.ROUNDS:
        name = f"{round_name.removeprefix('v')}.0"
        return name if name in rulesets() else None
    if benchmark in _OWN_RULESETS:
        return _OWN_RULESETS[benchmark]
    return next((name for name in reversed(rulesets()) if benchmark in allowed_benchmarks(name)), None)


def check_ruleset(name: str) -> str:
    """`name` if there is such a ruleset.

    Raises:
        UserError: there is none.
    """
    if name not in rulesets():
        raise UserError(f"There is no ruleset {name!r}; there are {', '.join(rulesets())}.")
    return name


def allowed_benchmarks(ruleset: str) -> list[str]:
    from mlperf_logging.benchmark_meta import get_allowed_benchmarks

    try:
        return get_allowed_benchmarks("training", ruleset)
    except ValueError:
        return []


def check_log(path: Path, ruleset: str) -> list[Finding]:
    """What `compliance_checker` says of a log, each complaint at the line that it is about."""
    rule = f"official-{ruleset}"
    if path.stat().st_size > _MOST_BYTES:
        return [Finding(path, rule, "the log is too large for the official checker.", "Log less.")]
    if at := _overlong(path):
        text = "the line is too long for the official checker, whose search takes the square of its length."
        return [Finding(path, rule, text, "Log shorter events.", line=at)]
    try:
        lines, numbers, damaged = parse(path, ruleset)
    except Exception as error:  # its parser takes much for granted
        text = f"the official parser fails on this log ({type(error).__name__}: {error})."
        return [Finding(path, rule, text, "Mend the damaged lines.")]
    found = list(_damaged(path, damaged))
    if bad := _unsafe(lines):
        text = f"{bad} is no plain name, and the official checker would open a file called after it."
        return [*found, Finding(path, rule, text, _MEND)]
    checker = _Checker(ruleset)
    with _quiet():
        checker.run(lines)
    for line, text in checker.complaints():
        at = numbers[line.lineno] if line is not None and line.lineno < len(numbers) else None
        found.append(Finding(path, rule, text, _MEND, line=at))
    return found


def parse(path: Path, ruleset: str) -> tuple[list[Any], list[int], list[tuple[int, str]]]:
    """As `mlp_parser.parse_file`, whose way to cut prefixes off takes the square of a line's length.

    Returns:
        The events as the official parser has them; of the n-th event, as it counts, the number of its line;
        the numbers of the lines that it cannot read, and why.
    """
    name = f"mlperf_logging.compliance_checker.mlp_parser.ruleset_{ruleset.replace('.', '')}"
    parser = importlib.import_module(name)
    lines: list[Any] = []
    numbers: list[int] = []
    damaged: list[tuple[int, str]] = []
    with open(path, encoding="latin-1") as file:
        for number, line in enumerate(file, 1):
            at = line.rfind(parser.TOKEN)
            if at < 0:
                continue
            try:
                lines.append(parser.string_to_logline(len(numbers), line[at:].strip()))
            except ValueError as error:
                damaged.append((number, str(error)))
            numbers.append(number)
    return lines, numbers, damaged


def check_system(path: Path, ruleset: str) -> list[Finding]:
    """What `system_desc_checker` says of a system's description."""
    from mlperf_logging.system_desc_checker.system_desc_checker import check_system_desc

    if ruleset == "0.6.0":
        return []  # the description was another then
    with _quiet() as told:
        try:
            valid, *_ = check_system_desc(str(path), "training", ruleset)
        except Exception as error:
            told.append(f"it fails on this file ({type(error).__name__}: {error})")
            valid = False
    mend = "Fill the fields in as mlperf_logging/system_desc_checker wants them."
    return [] if valid else [Finding(path, "system-description", one_line("; ".join(told)), mend)]


def _folder() -> Path:
    import mlperf_logging

    return Path(mlperf_logging.__file__).parent / "compliance_checker"


def _unsafe(lines: Sequence[Any]) -> str:
    for line in lines:
        if line.key in _NAMING:
            value = line.value["value"]
            if not (isinstance(value, str) and re.fullmatch(r"\w{1,64}", value)):
                return f"{line.key} {one_line(repr(value))[:80]}"
    return ""


def _overlong(path: Path) -> int | None:
    with open_regular(path) as file:
        lines = enumerate(file, 1)
        return next((at for at, line in lines if len(line) > _LONGEST_LINE and b":::ML" in line), None)


def _damaged(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[Finding]:
    """The lines that the official parser cannot read, the first of them by number."""
    mend = "Restore the line."
    for number, reason in lines[:_MOST_DAMAGED]:
        text = f"the official parser cannot read it: {one_line(reason)}."
        yield Finding(path, "damaged-line", text, mend, line=number)
    if len(lines) > _MOST_DAMAGED:
        text = f"the official parser cannot read {len(lines)} lines."
        yield Finding(path, "damaged-line", text, "Restore the log.")


class _Yaml:
    """Stands for the checker's `yaml`: a ruleset's files are parsed once, not once for every log."""

    BaseLoader = None

    @staticmethod
    def load(file: TextIO, Loader: None) -> Any:
        return _rules(file.name)


@functools.cache
def _rules(path: str) -> Any:
    import yaml

    with open(path) as file:
        return yaml.load(file, Loader=yaml.BaseLoader)


class _Checker:
    """The official checker, with each message kept beside the line that it came from."""

    def __init__(self, ruleset: str) -> None:
        from mlperf_logging.compliance_checker import mlp_compliance

        outer = self
        self._module = mlp_compliance
        self._ruleset = ruleset
        self._line: Any = None
        self._kept: list[tuple[str | None, Any, str]] = []

        class Checker(mlp_compliance.ComplianceChecker):
            def run_check_eval(self, ll, tests, state):
                outer._line = ll
                super().run_check_eval(ll, tests, state)
                outer._line = None

            def run_check_exec(self, ll, code, state, action):
                outer._line = ll
                super().run_check_exec(ll, code, state, action)
                outer._line = None

            def put_message(self, msg, key=None):
                outer._kept.append((key, outer._line, msg))

            def overwrite_messages(self, keys):
                outer._kept = [kept for kept in outer._kept if kept[0] not in keys]

        self._checker = Checker("training", ruleset, True, False)

    def run(self, lines: Sequence[Any]) -> None:
        self._module.enqueued_configs.clear()  # a failed run before this may have left some
        yaml, self._module.yaml = self._module.yaml, _Yaml
        try:
            self._checker.check_loglines(lines, f"training_{self._ruleset}/common.yaml")
        except FileNotFoundError as error:
            text = f"this ruleset has no rules for what the log says ({Path(str(error.filename)).name})"
            self._kept.append((None, None, text))
        except Exception as error:
            text = f"the official checker itself fails ({type(error).__name__}: {error})"
            self._kept.append((None, None, text))
        finally:
            self._module.yaml = yaml
            self._module.enqueued_configs.clear()

    def complaints(self) -> Iterator[tuple[Any, str]]:
        """(the line as the official parser has it or None, what is said), each once."""
        seen = set()
        for _, line, message in self._kept:
            text = _shortened(message)
            if (line and line.lineno, text) not in seen:
                seen.add((line and line.lineno, text))
                yield line, text


def _shortened(message: str) -> str:
    """The message without the dump of the checker's own state."""
    test = re.search(r"failed test: (.*)", message)
    if message.startswith("CHECK for") and test:
        key = re.match(r"CHECK for '([^']*)'", message)
        logged = re.search(r":::MLL(?:OG)? (.*)", message)
        return f"{key[1] if key else 'an event'} does not pass {test[1].strip()!r}: {_value_in(logged)}"
    if test:
        return f"does not pass {test[1].strip()!r}"
    return one_line(message.split("\ncurrent context")[0])


def _value_in(match: re.Match[str] | None) -> str:
    """What the line says, without where and when it was said."""
    if match is None:
        return ""
    try:
        event = json.loads(match[1])
        told = {
            "value": event["value"],
            **{k: v for k, v in event["metadata"].items() if k not in ("file", "lineno")},
        }
        return one_line(json.dumps(told))[:160]
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return one_line(match[1])[:160]


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keeps what is logged through the root logger meanwhile to itself; yields the errors among it."""
    told: list[str] = []
    root = logging.getLogger()
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    before, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.ERROR)
    try:
        yield told
    finally:
        root.handlers[:] = before
        root.setLevel(level)
