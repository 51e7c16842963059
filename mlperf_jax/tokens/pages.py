"""Which pages of the cache are whose: counted on the host, where nothing waits for the device."""

from __future__ import annotations

from collections.abc import Iterable

NOBODYS = 0
"""The page that is never given away: what is computed for nobody is written there."""


class Pages:
    """The pages 1 to `count` - 1 of a cache.

    Args:
        count: N, pages of the cache.
        size: positions of a page.

    Attributes:
        total: pages that there are to give; from any thread.
    """

    def __init__(self, count: int, size: int) -> None:
        if count < 2:
            raise ValueError(f"a cache of {count} pages has none to give; it takes at least 2")
        self.size = size
        self.total = count - 1
        self._free = list(range(count - 1, NOBODYS, -1))
        self._taken: set[int] = set()

    @property
    def free(self) -> int:
        """Pages that nobody has."""
        return len(self._free)

    def needed(self, positions: int) -> int:
        """Pages that hold so many positions."""
        return -(-positions // self.size)

    def take(self, count: int) -> list[int]:
        """So many pages; there must be as many."""
        if count > self.free:
            raise ValueError(f"{count} pages are asked for, and {self.free} are free")
        taken = [self._free.pop() for _ in range(count)]
        self._taken.update(taken)
        return taken

    def give_back(self, pages: Iterable[int]) -> None:
        """Pages that were taken, each of them once."""
        for page in pages:
            self._taken.remove(page)
            self._free.append(page)
