"""Records of games in SGF (FF[4]): written whole, read as untrusted input.

Source: https://www.red-bean.com/sgf/. Reading keeps the main line of each game: the first branch wherever
there are several, which is what was played. It takes time and memory by the file's size.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlperf_jax.errors import UserError
from mlperf_jax.go import encodings
from mlperf_jax.results.folders import write_bytes

_LARGEST = 16 * 2**20  # bytes of a file; a game takes some thousand
_LONGEST_NUMBER = 40
_SETUP = frozenset({"AB", "AW", "AE"})
_LETTERS = "abcdefghijklmnopqrs"


@dataclasses.dataclass(frozen=True)
class Record:
    """A game.

    Attributes:
        size: of the board.
        komi: points for White; None where what the record says is no number.
        moves: by number, row by row from the top left; `size * size` passes. Black and White in turn.
        result: as SGF has it: "B+R", "W+3.5", "B+" where the margin is not known, "" where nothing is.
        players: Black's and White's names.
    """

    size: int
    komi: float | None
    moves: tuple[int, ...]
    result: str = ""
    players: tuple[str, str] = ("", "")


def to_sgf(game: Record) -> str:
    """One game tree, a line."""
    names = [name.replace("\\", "\\\\").replace("]", "\\]") for name in game.players]
    head = (
        f";FF[4]GM[1]CA[UTF-8]AP[mlperf_jax]RU[Chinese]SZ[{game.size}]"
        + ("" if game.komi is None else f"KM[{game.komi:g}]")
        + f"PB[{names[0]}]PW[{names[1]}]"
        + (f"RE[{game.result}]" if game.result else "")
    )
    return "(" + head + "".join(_node(i, move, game.size) for i, move in enumerate(game.moves)) + ")\n"


def _node(index: int, move: int, size: int) -> str:
    row, column = divmod(move, size)
    point = "" if move == size**2 else _LETTERS[column] + _LETTERS[row]
    return f";{'BW'[index % 2]}[{point}]"


def write(path: Path, games: Sequence[Record]) -> None:
    """Writes a collection of games, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    write_bytes(path, "".join(map(to_sgf, games)).encode())


class BadRecord(ValueError):
    """A text that is no game, or one that this package cannot play; it says why."""


# A bracket or the beginning of a node; or a property, its name and then values in brackets, in which a backslash
# protects the next character. Nothing that was matched is gone back to: reading stays linear.
_VALUES = r"(?:\s*+\[(?:[^\]\\]++|\\.)*+\])++"
_TOKEN = re.compile(rf"\s*+(?:([();])|([A-Za-z]++)({_VALUES}))", re.DOTALL)
_VALUE = re.compile(r"\[((?:[^\]\\]++|\\.)*+)\]", re.DOTALL)


def parse(text: str) -> Iterator[Record]:
    """The games of a collection, each as its main line.

    Raises:
        BadRecord: it is no SGF, or a game is not of Go, has stones placed on the board, or colours that
            do not take turns.
    """
    position = text.find("(")
    if position < 0:
        raise BadRecord("there is no game in it")
    while position >= 0:
        nodes, position = _main_line(text, position)
        yield _record(nodes)
        position = text.find("(", position)


def _main_line(text: str, position: int) -> tuple[list[dict[str, list[str]]], int]:
    """The nodes of the first branch of the tree that begins at `position`, and where the tree ends."""
    nodes: list[dict[str, list[str]]] = []
    depth, closed, inside = 0, False, False
    while match := _TOKEN.match(text, position):
        position = match.end()
        mark, name, values = match.groups()
        if name:
            if not inside:
                raise BadRecord(f"{name[:12]!r} is out of place at character {match.start(2)}")
            if not closed:
                nodes[-1]["".join(c for c in name if c.isupper())] = _VALUE.findall(values)
        elif mark == ";":
            inside = True
            if not closed:
                nodes.append({})
        elif mark == "(":
            depth, inside = depth + 1, False
        else:
            depth, closed, inside = depth - 1, True, False
            if depth == 0:
                return nodes, position
    rest = text[position : position + 80].lstrip()[:12]
    raise BadRecord(f"{rest!r} is out of place at character {position}" if rest else "it ends inside a game")


def _record(nodes: list[dict[str, list[str]]]) -> Record:
    if not nodes:
        raise BadRecord("a game without a node")
    head = nodes[0]
    if _first(head, "GM", "1") != "1":
        raise BadRecord("it is a game other than Go")
    size = _size(_first(head, "SZ", "19"))
    if not all(map(_SETUP.isdisjoint, nodes)):
        raise BadRecord("stones are placed on the board (a handicap or a problem)")
    moves: list[int] = []
    for node in nodes:
        for color in "BW":
            if color not in node:
                continue
            if color != "BW"[len(moves) % 2]:
                raise BadRecord(f"move {len(moves) + 1} is not its colour's turn")
            moves.append(_move(node[color][0], size))
    komi = _komi(_first(head, "KM", ""))
    players = (_first(head, "PB", ""), _first(head, "PW", ""))
    return Record(size, komi, tuple(moves), _first(head, "RE", ""), players)


def _first(node: dict[str, list[str]], name: str, default: str) -> str:
    """The first value; a line that a backslash breaks goes on."""
    if name not in node:
        return default
    value = node[name][0]
    if "\\" in value:
        value = re.sub(r"\\(?:\r?\n|(.))", r"\1", value, flags=re.DOTALL)
    return value.strip()


def _size(text: str) -> int:
    columns, _, rows = text.partition(":")
    if not re.fullmatch(r"\d{1,4}", columns) or rows not in ("", columns):
        raise BadRecord(f"SZ[{text[:20]!r}] is no number")
    if not 3 <= int(columns) <= 19:
        raise BadRecord(f"a board of size {int(columns)}")
    return int(columns)


def _komi(text: str) -> float | None:
    """Any real number, with a point or a comma; 0 where nothing is said, None where no number is."""
    if not text:
        return 0.0
    number = text.replace(",", ".")
    if len(number) > _LONGEST_NUMBER or not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", number):
        return None
    return float(number) if math.isfinite(float(number)) else None


def _move(point: str, size: int) -> int:
    point = point.strip()
    if point == "" or (point == "tt" and size <= 19):
        return size**2
    if len(point) != 2 or any(c not in _LETTERS[:size] for c in point):
        raise BadRecord(f"{point[:8]!r} is no point of a board of size {size}")
    return _LETTERS.index(point[1]) * size + _LETTERS.index(point[0])


def read(path: Path) -> list[Record]:
    """The games of a file.

    Raises:
        BadRecord: it is none.
        UserError: it cannot be read.
    """
    try:
        if not path.is_file():
            raise BadRecord("it is no file")
        if path.stat().st_size > _LARGEST:
            raise BadRecord(f"it has more than {_LARGEST >> 20} MiB")
        text = encodings.decode(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    return list(parse(text))
