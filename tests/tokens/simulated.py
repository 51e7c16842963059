"""A device that is not there: tokens of a text are drawn by its prompt, and pages are watched."""

import numpy as np

from mlperf_jax.tokens.programs import Sizes

END = 0


class Simulated:
    """Looks at what it is asked: that no page serves two texts, and that all is in order."""

    ends = (END,)

    def __init__(self, sizes: Sizes, vocabulary: int = 1000, end_share: float = 0.05) -> None:
        self.sizes, self.vocabulary, self._end_share = sizes, vocabulary, end_share
        self.owner: dict[int, object] = {}  # page -> request
        self.at_work: dict[int, list] = {}  # slot -> [answer, tokens so far, request]
        self.most = 0

    def told(self, request) -> list[int]:
        """All tokens of a request's answer."""
        random = np.random.default_rng(request.prompt.tolist())
        found: list[int] = []
        while len(found) < request.max_tokens:
            ends = random.random() < self._end_share and len(found) + 1 >= request.min_tokens
            found.append(END if ends else int(random.integers(1, self.vocabulary)))
            if ends:
                break
        return found

    def prefill(self, chunk):
        assert chunk.slot not in self.at_work
        assert 0 < chunk.stop - chunk.start <= self.sizes.chunks[-1]
        assert len(set(chunk.pages)) == len(chunk.pages) and 0 not in chunk.pages
        assert len(chunk.pages) * self.sizes.page >= len(chunk.request.prompt) + chunk.request.max_tokens - 1
        at_work = {id(request) for *_, request in self.at_work.values()}
        for page in chunk.pages:
            assert id(self.owner.get(page)) not in at_work
            self.owner[page] = chunk.request
        if chunk.stop < len(chunk.request.prompt):
            return np.int32(-5)
        answer = self.told(chunk.request)
        if len(answer) > 1:
            self.at_work[chunk.slot] = [answer, 1, chunk.request]
        return np.int32(answer[0])

    def step(self, slots):
        assert all(slot < slots for slot in self.at_work)
        self.most = max(self.most, len(self.at_work))
        tokens = np.full(slots, -7, np.int32)
        for slot, work in list(self.at_work.items()):
            answer, made, _ = work
            tokens[slot] = answer[made]
            work[1] += 1
            if work[1] == len(answer):
                del self.at_work[slot]
        return tokens

    def stop(self, slot):
        self.at_work.pop(slot, None)


class Collected:
    """Hears of one request."""

    def __init__(self):
        self.tokens, self.lasts, self.why = [], [], None

    def token(self, token, last):
        assert not any(self.lasts) and self.why is None
        self.tokens.append(token)
        self.lasts.append(last)

    def failed(self, why):
        assert not any(self.lasts) and self.why is None
        self.why = why

    @property
    def finished(self):
        return bool(self.lasts) and self.lasts[-1]
