"""Between the event loop, in which clients are heard, and the engines' threads: who is let in, and tokens on their way.

An engine's thread leaves a token in a mailbox and goes on; the first one there wakes the loop, which then takes all that have come. So a
step of the engine costs it one call however many texts it told, and no client can hold it up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator, Sequence

from mlperf_jax.tokens.engine import Device, Engine
from mlperf_jax.tokens.openai.refusals import Refusal
from mlperf_jax.tokens.requests import Request
from mlperf_jax.tokens.scheduler import Text

MOST_UNREAD = 1024  # tokens of a text that come while its client takes nothing, until it is given up
_RETRY_SECONDS = 1


class Desk:
    """Takes requests, as many as the engines' slots and a queue hold.

    Args:
        programs: compiled, an engine's each.
        queue: requests that may wait for a slot.
    """

    def __init__(self, programs: Sequence[Device], *, queue: int) -> None:
        self._engines = [Engine(one) for one in programs]
        self._under_way = [0] * len(programs)  # requests of each
        sizes = programs[0].sizes
        self.length, self.ends = sizes.length, frozenset(programs[0].ends)
        self.room = len(programs) * sizes.slots + queue
        self._orders: set[Order] = set()
        self._closing = False

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Runs the engines, for the event loop that calls this."""
        self._mail = _Mailbox(asyncio.get_running_loop())
        with contextlib.ExitStack() as stack:
            for engine in self._engines:
                stack.enter_context(engine)
            yield

    @property
    def broken(self) -> str | None:
        """Why nobody is served, None while all is well."""
        if self._closing:
            return "The server is shutting down."
        return next((engine.broken for engine in self._engines if engine.broken), None)

    def order(self, requests: Sequence[Request]) -> Order:
        """Has requests answered together.

        Raises:
            Refusal: there is no room for them now, or one can never be answered.
        """
        if why := self.broken:
            raise Refusal(503, why)
        for number, request in enumerate(requests):
            if why := self._engines[0].refusal(request):
                raise Refusal(400, why if len(requests) == 1 else f"Prompt {number}: {why}")
        if len(requests) > self.room:
            raise Refusal(
                400,
                f"{len(requests):,} prompts are more than the {self.room:,} that there is room for at once.",
            )
        if sum(self._under_way) + len(requests) > self.room:
            raise Refusal(
                429,
                f"All {self.room:,} places for requests are taken; try again later.",
                code="queue_full",
                headers={"Retry-After": str(_RETRY_SECONDS)},
            )
        order = Order(self)
        self._orders.add(order)
        for request in requests:
            number = min(range(len(self._engines)), key=self._under_way.__getitem__)
            self._under_way[number] += 1
            answer = Answer(order, number, self._mail)
            order.answers.append(answer)
            answer.text = self._engines[number].submit(request, answer)
        return order

    def close(self, seconds: float) -> None:
        """From now on nobody is let in, and after so many seconds who is not done is told so."""
        self._closing = True
        asyncio.get_running_loop().call_later(seconds, self._break_off)

    def _break_off(self) -> None:
        for order in list(self._orders):
            order.fail(Refusal(503, "The server was shut down before the answer was complete."))

    def over(self, answer: Answer, *, cancel: bool) -> None:
        """An answer's place is free; `cancel`: its engine is still at it."""
        self._under_way[answer.engine] -= 1
        if cancel and answer.text is not None:
            self._engines[answer.engine].cancel(answer.text)

    def served(self, order: Order) -> None:
        """Nobody waits for it any more."""
        self._orders.discard(order)

    def failure(self, why: str) -> Refusal:
        """What an engine said of a request that failed under way."""
        return Refusal(503 if self.broken else 500, why)


class Order:
    """Requests that are answered together. All of it is the event loop's.

    Attributes:
        answers: of each.
        failed: done where there will be no more, with why.
        sending: whether the client is waited for, which has to take what was sent before.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk, self.answers = desk, list[Answer]()
        self.failed: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()
        self.sending = False
        self._changed = asyncio.Event()

    async def news(self) -> None:
        """Waits until there are further tokens."""
        await self._changed.wait()
        self._changed.clear()

    def tell(self) -> None:
        """There are."""
        self._changed.set()

    def fail(self, why: Refusal) -> None:
        """Ends it early."""
        if not self.failed.done():
            self.failed.set_result(why)
        self.close()

    def close(self) -> None:
        """Gives up what is not answered yet."""
        for answer in self.answers:
            answer.cancel()
        self.desk.served(self)


class Answer:
    """Of one request, the `Listener` of its engine.

    Attributes:
        engine: the number of it.
        text: the engine's.
        tokens: that came and were not taken yet.
        complete: whether the last has come.
        over: whether there are no more to come, for whatever reason.
    """

    def __init__(self, order: Order, engine: int, mail: _Mailbox) -> None:
        self._order, self._mail, self.engine = order, mail, engine
        self.text: Text | None = None
        self.tokens: deque[int] = deque()
        self.complete = self.over = False

    # In the engine's thread.

    def token(self, token: int, last: bool) -> None:
        self._mail.put((self, token, last))

    def failed(self, why: str) -> None:
        self._mail.put((self, why, True))

    # In the event loop.

    def hear(self, what: int | str, last: bool) -> None:
        """A token, or why there are no more."""
        if self.over:
            return
        if last:
            self.over = True
            self._order.desk.over(self, cancel=False)
        if isinstance(what, str):
            self._order.fail(self._order.desk.failure(what))
            return
        self.complete = last
        self.tokens.append(what)
        self._order.tell()
        if self._order.sending and len(self.tokens) > MOST_UNREAD:
            self._order.fail(Refusal(503, "The client reads more slowly than the answer is told."))

    def cancel(self) -> None:
        """Nobody waits for more of it."""
        if not self.over:
            self.over = True
            self._order.desk.over(self, cancel=True)


_Told = tuple[Answer, int | str, bool]


class _Mailbox:
    """What engines' threads leave for an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._letters = loop, deque[_Told]()
        self._called = False

    def put(self, letter: _Told) -> None:
        """From any thread."""
        self._letters.append(letter)
        if not self._called:  # it is set back before letters are taken, so that none is left lying
            self._called = True
            self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._called = False
        for _ in range(len(self._letters)):
            answer, what, last = self._letters.popleft()
            answer.hear(what, last)
