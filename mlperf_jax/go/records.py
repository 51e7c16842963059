"""Records of games in SGF (FF[4]): written whole, read as untrusted input.

Source: https://www.red-bean.com/sgf/. Reading keeps the main line of each game: the first branch wherever
there are several, which is what was played.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlperf_jax.errors import UserError
from mlperf_jax.results.folders import write_bytes

_LARGEST = 16 * 2**20  # bytes of a file; a game takes some thousand
_LETTERS = "abcdefghijklmnopqrs"


@dataclasses.dataclass(frozen=True)
class Record:
    """A game.

    Attributes:
        size: of the board.
        komi: points for White.
        moves: by number, row by row from the top left; `size * size` passes. Black and White in turn.
        result: as SGF has it: "B+R", "W+3.5", "B+" where the margin is not known, "" where nothing is.
        players: Black's and White's names.
    """

    size: int
    komi: float
    moves: tuple[int, ...]
    result: str = ""
    players: tuple[str, str] = ("", "")


def to_sgf(game: Record) -> str:
    """One game tree, a line."""
    names = [name.replace("\\", "\\\\").replace("]", "\\]") for name in game.players]
    head = (
        f";FF[4]GM[1]CA[UTF-8]AP[mlperf_jax]RU[Chinese]SZ[{game.size}]KM[{game.komi:g}]"
        f"PB[{names[0]}]PW[{names[1]}]" + (f"RE[{game.result}]" if game.result else "")
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


# A property: its name, then values in brackets, in which a backslash protects the next character.
_PROPERTY = re.compile(r"\s*([A-Za-z]+)((?:\s*\[(?:[^\]\\]|\\.)*\])+)\s*", re.DOTALL)
_VALUE = re.compile(r"\[((?:[^\]\\]|\\.)*)\]", re.DOTALL)


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
    depth, on_main, closed = 0, True, False
    while position < len(text):
        character = text[position]
        if character == "(":
            depth, on_main = depth + 1, not closed
            position += 1
        elif character == ")":
            depth, closed = depth - 1, True
            position += 1
            if depth == 0:
                return nodes, position
        elif character == ";":
            position += 1
            node: dict[str, list[str]] = {}
            while match := _PROPERTY.match(text, position):
                name = "".join(c for c in match[1] if c.isupper())
                node[name] = _VALUE.findall(match[2])
                position = match.end()
            if on_main and not closed:
                nodes.append(node)
        elif character.isspace():
            position += 1
        else:
            raise BadRecord(f"{text[position : position + 12]!r} is out of place at character {position}")
    raise BadRecord("it ends inside a game")


def _record(nodes: list[dict[str, list[str]]]) -> Record:
    if not nodes:
        raise BadRecord("a game without a node")
    head = nodes[0]
    if _first(head, "GM", "1") != "1":
        raise BadRecord("it is a game other than Go")
    size = _number(_first(head, "SZ", "19"), "SZ")
    if size % 1 or not 3 <= size <= 19:
        raise BadRecord(f"a board of size {size:g}")
    size = int(size)
    if any({"AB", "AW", "AE"} & node.keys() for node in nodes):
        raise BadRecord("stones are placed on the board (a handicap or a problem)")
    moves: list[int] = []
    for node in nodes:
        for color in sorted({"B", "W"} & node.keys()):
            if color != "BW"[len(moves) % 2]:
                raise BadRecord(f"move {len(moves) + 1} is not its colour's turn")
            moves.append(_move(node[color][0], size))
    komi = _number(_first(head, "KM", "0") or "0", "KM")
    players = (_first(head, "PB", ""), _first(head, "PW", ""))
    return Record(size, komi, tuple(moves), _first(head, "RE", ""), players)


def _first(node: dict[str, list[str]], name: str, default: str) -> str:
    return re.sub(r"\\(.)", r"\1", node.get(name, [default])[0], flags=re.DOTALL).strip()


def _number(text: str, name: str) -> float:
    if not re.fullmatch(r"[+-]?\d{1,4}(\.\d{1,4})?", text):
        raise BadRecord(f"{name}[{text[:20]}] is no number")
    return float(text)


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
        if path.stat().st_size > _LARGEST:
            raise BadRecord(f"it has more than {_LARGEST >> 20} MiB")
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    return list(parse(text))
