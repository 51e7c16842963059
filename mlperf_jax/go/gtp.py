"""The Go Text Protocol, version 2: an engine that any Go board program can talk to.

Source: Farnebäck, "Specification of the Go Text Protocol, version 2, draft 2". What comes in is not
trusted: whatever it is, the answer is a result or a failure, and the engine lives on.

Differences from other engines: time is not kept (each move takes the readouts it was given), no stone is
taken for dead (`final_score` counts the area as it lies), and a player who moves twice in a row has the
other side pass in between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import BinaryIO

import jax
import numpy as np

from mlperf_jax.go.player import Player
from mlperf_jax.go.rules import Position, Rules

_COLUMNS = "ABCDEFGHJKLMNOPQRST"
_LONGEST = 4096  # bytes of a line
_COLORS = {"b": 0, "black": 0, "w": 1, "white": 1}


class Failure(Exception):
    """A command that could not be done; the text is the answer."""


def to_vertex(move: int, size: int) -> str:
    """GTP's name of a move."""
    row, column = divmod(move, size)
    return "PASS" if move == size**2 else f"{_COLUMNS[column]}{size - row}"


def to_move(vertex: str, size: int) -> int:
    """The move of a vertex.

    Raises:
        Failure: it is none of this board.
    """
    text = vertex.upper()
    if text == "PASS":
        return size**2
    match = re.fullmatch(r"([A-HJ-T])([1-9][0-9]?)", text)
    if not match:
        raise Failure("invalid vertex")
    column, row = _COLUMNS.index(match[1]), size - int(match[2])
    if column >= size or row < 0:
        raise Failure("invalid vertex")
    return row * size + column


class GtpEngine:
    """A board and a player behind GTP's commands.

    Attributes:
        quit: whether the controller has said goodbye.
    """

    def __init__(self, player: Player, *, name: str = "mlperf_jax", resign_below: float = -1.0) -> None:
        """Sets up an empty board.

        Args:
            player: who chooses moves; it knows one board size.
            name: of the engine.
            resign_below: `genmove` resigns where the search's value, from -1 to 1, is below this.
        """
        self.player = player
        self.name = name
        self.resign_below = resign_below
        self.quit = False
        self._commands: dict[str, Callable[[list[str]], str]] = {
            "protocol_version": lambda _: "2",
            "name": lambda _: self.name,
            "version": lambda _: metadata.version("mlperf_jax"),
            "known_command": lambda words: str(self._argument(words, 0) in self._commands).lower(),
            "list_commands": lambda _: "\n".join(sorted(self._commands)),
            "quit": self._quit,
            "boardsize": self._boardsize,
            "clear_board": self._clear_board,
            "komi": self._komi,
            "play": self._play,
            "genmove": self._genmove,
            "reg_genmove": self._reg_genmove,
            "undo": self._undo,
            "showboard": self._showboard,
            "final_score": self._final_score,
            "time_settings": self._time_settings,
            "time_left": self._time_left,
        }
        self._history: list[Position] = []
        self._clear_board([])

    @property
    def _rules(self) -> Rules:
        return self.player.rules

    @property
    def _position(self) -> Position:
        """Batched: [1]."""
        return self._history[-1]

    def answer(self, line: str) -> str | None:
        """The response to one line, empty line at the end included; None where it holds no command."""
        text = "".join(" " if c == "\t" else c for c in line if c == "\t" or c >= " " and c != "\x7f")
        words = text.partition("#")[0].split()
        if not words:
            return None
        number = words.pop(0) if re.fullmatch(r"\d{1,18}", words[0]) else ""
        try:
            if not words:
                raise Failure("a number without a command")
            command = self._commands.get(words[0])
            if command is None:
                raise Failure("unknown command")
            return f"={number} {command(words[1:])}".rstrip() + "\n\n"
        except Failure as failure:
            return f"?{number} {failure}\n\n"

    def _argument(self, words: list[str], index: int) -> str:
        if len(words) <= index:
            raise Failure("syntax error: an argument is missing")
        return words[index]

    def _number(self, words: list[str], index: int) -> float:
        text = self._argument(words, index)
        if not re.fullmatch(r"[+-]?\d{1,9}(\.\d{0,9})?", text):
            raise Failure("syntax error: not a number")
        return float(text)

    def _color(self, words: list[str], index: int) -> int:
        color = _COLORS.get(self._argument(words, index).lower())
        if color is None:
            raise Failure("syntax error: not a color")
        return color

    def _quit(self, _: list[str]) -> str:
        self.quit = True
        return ""

    def _boardsize(self, words: list[str]) -> str:
        if self._number(words, 0) != self._rules.size:
            raise Failure("unacceptable size")
        return self._clear_board([])

    def _clear_board(self, _: list[str]) -> str:
        self._history = [self.player.starts(1)]
        return ""

    def _komi(self, words: list[str]) -> str:
        komi = self._number(words, 0)
        if abs(komi) > self._rules.points:
            raise Failure("komi is larger than the board")
        self.player.set_komi(komi)
        return ""

    def _turn(self, color: int) -> Position:
        """The position with `color` to play: where it is not, the other side passes.

        Raises:
            Failure: the game is over, or that pass would end it.
        """
        position = self._position
        if int(position.game.step_count[0]) % 2 != color:
            position = self._after(position, self._rules.points)
        if bool(position.over[0]):
            raise Failure("illegal move: the game is over")
        return position

    def _after(self, position: Position, move: int) -> Position:
        return self.player.play(position, np.array([move]))

    def _legal(self, position: Position, move: int) -> Position | None:
        """The position after a move; None where it is illegal, as a repetition is."""
        if not bool(position.legal[0, move]):
            return None
        after = self._after(position, move)
        return None if bool(after.game.is_psk[0]) else after

    def _play(self, words: list[str]) -> str:
        color = self._color(words, 0)
        move = to_move(self._argument(words, 1), self._rules.size)
        after = self._legal(self._turn(color), move)
        if after is None:
            raise Failure("illegal move")
        self._history.append(after)
        return ""

    def _chosen(self, words: list[str]) -> tuple[str, Position | None]:
        """The move for a colour, as GTP has it, and the position after it; None where that is resigning."""
        color = self._color(words, 0)
        if bool(self._position.over[0]):
            return "PASS", self._position
        position = self._turn(color)
        choice = self.player.choose(position)
        if choice.value[0] < self.resign_below:
            return "resign", None
        for move in choice.moves[0].tolist():
            if (after := self._legal(position, move)) is not None:
                return to_vertex(move, self._rules.size), after
        raise Failure("no legal move")  # cannot be: passing never repeats a position

    def _genmove(self, words: list[str]) -> str:
        vertex, after = self._chosen(words)
        if after is not None:
            self._history.append(after)
        return vertex

    def _reg_genmove(self, words: list[str]) -> str:
        return self._chosen(words)[0]

    def _undo(self, _: list[str]) -> str:
        if len(self._history) == 1:
            raise Failure("cannot undo")
        self._history.pop()
        return ""

    def _showboard(self, _: list[str]) -> str:
        size = self._rules.size
        board = np.asarray(self._position.game.board[0]).reshape(size, size)
        head = "   " + " ".join(_COLUMNS[:size])
        rows = [
            f"{size - r:2} " + " ".join(".XO"[int(np.sign(stone))] for stone in row) + f" {size - r}"
            for r, row in enumerate(board)
        ]
        return "\n" + "\n".join([head, *rows, head])

    def _final_score(self, _: list[str]) -> str:
        area = jax.vmap(self._rules.score)(self._position)
        score = float(area[0]) - self._rules.komi
        return "0" if score == 0 else f"{'B' if score > 0 else 'W'}+{abs(score):g}"

    def _time_settings(self, words: list[str]) -> str:
        for index in range(3):
            self._number(words, index)
        return ""

    def _time_left(self, words: list[str]) -> str:
        self._color(words, 0)
        for index in (1, 2):
            self._number(words, index)
        return ""


def serve(engine: GtpEngine, source: BinaryIO, sink: BinaryIO) -> None:
    """Answers commands until there are no more, or `quit`."""
    for line in _lines(source):
        answer = engine.answer(line)
        if answer is not None:
            sink.write(answer.encode())
            sink.flush()
        if engine.quit:
            return


def _lines(source: BinaryIO) -> Iterator[str]:
    """Lines as text; of one that is too long, the beginning."""
    while line := source.readline(_LONGEST):
        whole = line
        while whole and not whole.endswith(b"\n"):
            whole = source.readline(_LONGEST)
        yield line.decode("utf-8", errors="replace")
