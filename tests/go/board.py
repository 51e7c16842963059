"""Go on sets of points in plain Python, written from the rules alone: what the compiled board is held against."""


class Board:
    """Positional superko, no suicide, area scoring; points by number, `size * size` passes."""

    def __init__(self, size):
        self.size = size
        self.stones = {}  # point -> 1 (Black) or -1
        self.color = 1
        self.seen = [frozenset()]
        self.history = [dict()]  # boards, the newest last
        self.passes = 0

    def beside(self, point):
        row, column = divmod(point, self.size)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= r < self.size and 0 <= c < self.size:
                yield r * self.size + c

    def chain(self, point, stones):
        color, found, todo = stones.get(point), {point}, [point]
        while todo:
            for other in self.beside(todo.pop()):
                if other not in found and stones.get(other) == color:
                    found.add(other)
                    todo.append(other)
        return found

    def liberties(self, point, stones=None):
        stones = self.stones if stones is None else stones
        return {b for p in self.chain(point, stones) for b in self.beside(p) if b not in stones}

    def after(self, point):
        """The stones after a move; None where it is suicide or the point is taken."""
        if point in self.stones:
            return None
        stones = {**self.stones, point: self.color}
        for other in self.beside(point):
            if stones.get(other) == -self.color and not self.liberties(other, stones):
                for p in self.chain(other, stones):
                    del stones[p]
        return stones if self.liberties(point, stones) else None

    def captures(self, point):
        stones = self.after(point)
        return stones is not None and len(stones) <= len(self.stones)

    def repeats(self, point):
        stones = self.after(point)
        return stones is not None and frozenset(stones.items()) in self.seen[1:]

    def play(self, point):
        if point == self.size**2:
            self.passes += 1
        else:
            self.stones = self.after(point)
            self.passes = 0
        self.seen.append(frozenset(self.stones.items()))
        self.history.append(dict(self.stones))
        self.color = -self.color

    def score(self):
        """Black's area less White's."""
        total, counted = sum(self.stones.values()), set()
        for point in range(self.size**2):
            if point in self.stones or point in counted:
                continue
            region = self.chain(point, self.stones)
            counted |= region
            owners = {self.stones[b] for p in region for b in self.beside(p) if b in self.stones}
            if len(owners) == 1:
                total += owners.pop() * len(region)
        return total
