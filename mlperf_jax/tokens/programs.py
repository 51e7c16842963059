"""The compiled programs of the engine: a part of a prompt, of a few lengths, and one step of the first slots, of a few widths.

Cache and slots stay on the device from program to program, and are given up to each (donated). A step needs nothing from the
host: which slots are at work, their tokens, pages and wishes are arrays of its own. What comes back are tokens.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.layout import Layout, constrain
from mlperf_jax.platform import compiled_for
from mlperf_jax.precision import Policy
from mlperf_jax.served_programs import compile_served
from mlperf_jax.tokens.requests import Request
from mlperf_jax.tokens.sampling import FAILED, OnEitherSide, Wishes, next_tokens
from models.attention_paged import (
    Cache,
    attend_part,
    attend_step,
    empty,
    owners,
    pages_of,
    written,
    written_pages,
)
from models.decoder import Decoder, DecoderConfig, DecoderLayer, held
from models.held import Held, hold

_MOST_BANKS = 8
_COPIED = 3  # times as often a page is read or written where it is copied for a step
_WIDER = 8  # times as many slots the next wider step has; as many rows are a tile of an accelerator, and cost as much as one


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is fixed before anything is compiled.

    Attributes:
        slots: S, texts that are continued at a time.
        pages: N of the cache; the first is nobody's.
        page: positions of a page.
        length: positions that a text can have, a multiple of `page`.
        chunks: tokens of a prompt that are computed at a time, padded to one of these, ascending; the last, after which a prompt goes
            on, a multiple of `page`.
    """

    slots: int
    pages: int
    page: int
    length: int
    chunks: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.length % self.page:
            raise ValueError(f"pages of {self.page} do not divide a length of {self.length}")
        if not self.chunks or list(self.chunks) != sorted(set(self.chunks)):
            raise ValueError(f"chunks of {self.chunks} do not ascend")
        if self.chunks[-1] % self.page:
            raise ValueError(f"pages of {self.page} do not divide the largest chunk, {self.chunks[-1]}")

    @property
    def table(self) -> int:
        """P, pages of the longest text."""
        return self.length // self.page


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """A part of a prompt.

    Attributes:
        request: whose prompt it is.
        slot: where its text is continued.
        start, stop: of the prompt's tokens.
        pages: of the whole text.
    """

    request: Request
    slot: int
    start: int
    stop: int
    pages: Sequence[int]


class _Slots(NamedTuple):
    """What a step knows of each slot.

    Attributes:
        token: [S] int32, the newest, whose keys and values are not in the cache yet.
        position: [S] int32, where it stands.
        made: [S] int32, tokens so far, of which it is the last.
        left: [S] int32, tokens to come; 0 for slots that are not at work.
        table: [S, P] int32.
        wishes: of each.
    """

    token: jax.Array
    position: jax.Array
    made: jax.Array
    left: jax.Array
    table: jax.Array
    wishes: Wishes


class _Part(NamedTuple):
    """A chunk on its way to the device: [1, C] tokens, [] int32 numbers, the text's table [1, P] and wishes [1]."""

    tokens: OnEitherSide
    start: OnEitherSide
    real: OnEitherSide
    slot: OnEitherSide
    left: OnEitherSide
    table: OnEitherSide
    wishes: Wishes


class _Params(NamedTuple):
    """Parameters, layer by layer, so that none is copied out of an array of all; kernels in the compute dtype."""

    layers: list[Any]
    rest: dict[str, Any]


_Cache = list[Cache]
"""Of each layer."""


class _Paged(NamedTuple):
    """What is done with a layer's cache.

    Attributes:
        write: the cache with keys and values in it.
        attend: what queries find in it, in a window.
    """

    write: Callable[[Cache, jax.Array, jax.Array], Cache]
    attend: Callable[[jax.Array, Cache, int | None], jax.Array]


class Programs:
    """A decoder in its place, its cache and its slots.

    Args:
        config: of the decoder.
        params: its parameters, a tree of arrays in their places, layers stacked; or of structs, to be planned.
        policy: dtypes.
        sizes: see `Sizes`.
        ends: tokens that end a text.
        layout: where the decoder lies; None for one device.
        weights: one of `models.held.WEIGHTS`.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Any,
        policy: Policy,
        *,
        sizes: Sizes,
        ends: Sequence[int],
        layout: Layout | None = None,
        weights: str = "auto",
    ) -> None:
        self.sizes, self.vocabulary = sizes, config.vocab_size
        self.ends = tuple(ends)
        self._config, self._policy, self._layout = config, policy, layout
        make = nnx.eval_shape(lambda: Decoder(config, policy=policy, rngs=nnx.Rngs(0)))
        self._graph, shapes = nnx.split(make)
        self._masks, self._unused = make.masks, nnx.to_pure_dict(shapes)["layers"]
        make_layer = nnx.eval_shape(lambda: DecoderLayer(config, policy=policy, rngs=nnx.Rngs(0)))
        self._layer_graph = nnx.split(make_layer)[0]
        apart = jax.jit(lambda params: _apart(params, config, policy, make_layer, weights))
        shapes_alone = isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct)
        with layouts.use(layout):
            self._params = _structs(apart, params) if shapes_alone else apart(params)
        self._cache: _Cache = []
        self._slots: Any = None
        self._parts: dict[int, jax.stages.Compiled] = {}
        self._steps: dict[int, jax.stages.Compiled] = {}
        self._scored = jax.jit(self._run_scored, donate_argnums=1)

    def compile(self) -> None:
        """Makes cache and slots, and compiles everything; afterwards nothing is compiled any more."""
        with layouts.use(self._layout), jax.default_matmul_precision(self._policy.matmul):
            self._cache, self._slots = jax.jit(self._nothing)()
            held = self._params, self._cache, self._slots
            for tokens in self.sizes.chunks:
                read = jax.jit(self._run_prefill, donate_argnums=(1, 2))
                lowered = read.lower(*held, self._part(_example(tokens), tokens))
                self._parts[tokens] = compile_served(lowered, self._layout)
            for width in _widths(self.sizes.slots):
                step = jax.jit(functools.partial(self._run_step, width), donate_argnums=(1, 2))
                self._steps[width] = compile_served(step.lower(*held), self._layout)
            stop = jax.jit(_stopped, donate_argnums=0)
            self._stop = compile_served(stop.lower(self._slots, np.int32(0)), self._layout)

    def planned(self) -> dict[int | str, tuple[Any, ...]]:
        """For parameters that are structs: each program's function and its arguments, structs with places.

        By the tokens of a part of a prompt, and "step", of all slots; cache and slots are the second and the third argument, and
        given up.
        """
        with layouts.use(self._layout):
            held = self._params, *_structs(jax.jit(self._nothing))
        parts: dict[int | str, tuple[Any, ...]] = {
            tokens: (self._run_prefill, *held, self._part(_example(tokens), tokens))
            for tokens in self.sizes.chunks
        }
        return parts | {"step": (functools.partial(self._run_step, self.sizes.slots), *held)}

    def prefill(self, chunk: Chunk) -> jax.Array:
        """Sends a part of a prompt on its way; its token [] int32 is the text's first if the part was the last."""
        sizes = self.sizes.chunks
        tokens = sizes[bisect.bisect_left(sizes, chunk.stop - chunk.start)]
        part = self._part(chunk, tokens)
        self._cache, self._slots, token = self._parts[tokens](self._params, self._cache, self._slots, part)
        token.copy_to_host_async()
        return token

    def step(self, slots: int) -> jax.Array:
        """Sends a step of the first slots on its way: the next token of each, [slots or more] int32; of idle ones it means nothing."""
        run = self._steps[next(width for width in self._steps if width >= slots)]
        self._cache, self._slots, tokens = run(self._params, self._cache, self._slots)
        tokens.copy_to_host_async()
        return tokens

    def stop(self, slot: int) -> None:
        """Ends the text in a slot."""
        self._slots = self._stop(self._slots, np.int32(slot))

    def losses(self, text: np.ndarray) -> np.ndarray:
        """Minus the log probability of each token of a text [L] but the first, behind those before it: [L - 1] float32.

        As the engine computes prompts, but for no slot. Asked while no text is under way; compiled when first asked.
        """
        size, (asked,) = self.sizes.chunks[-1], np.asarray(text, np.int32)[None, :-1]
        table = 1 + np.arange(self.sizes.table, dtype=np.int32)[None]
        found = []
        for start in range(0, len(asked), size):
            part = asked[start : start + size]
            tokens, labels = np.zeros((1, size), np.int32), np.zeros(size, np.int32)
            tokens[0, : len(part)], labels[: len(part)] = part, text[start + 1 :][: len(part)]
            at = np.array([start], np.int32), np.array([len(part)], np.int32)
            with layouts.use(self._layout), jax.default_matmul_precision(self._policy.matmul):
                self._cache, losses = self._scored(self._params, self._cache, tokens, *at, table, labels)
            found.append(np.asarray(losses)[: len(part)])
        return np.concatenate(found)

    # What is traced.

    def _nothing(self) -> tuple[_Cache, _Slots]:
        """An empty cache and idle slots."""
        config, sizes = self._config, self.sizes
        shape = sizes.pages, config.num_key_heads, sizes.page, config.head_width

        platform = compiled_for()
        banks = min(os.cpu_count() or 1, _MOST_BANKS) if platform == "cpu" else 1

        def zeros() -> Cache:
            cache = empty(*shape, self._policy.compute_dtype, banks=banks, turned=platform != "tpu")
            return jax.tree.map(lambda array: constrain(array, None, "heads", None, None), cache)

        slots = jnp.zeros(sizes.slots, jnp.int32)
        none = slots.astype(jnp.float32)
        wishes = Wishes(none, none + 1, slots.astype(jnp.uint32), slots)
        table = jnp.zeros((sizes.slots, sizes.table), jnp.int32)
        cache = [zeros() for _ in range(config.num_layers)]
        return cache, _Slots(slots, slots, slots, slots, table, wishes)

    def _part(self, chunk: Chunk, size: int) -> _Part:
        request, count = chunk.request, chunk.stop - chunk.start
        tokens, table = np.zeros((1, size), np.int32), np.zeros((1, self.sizes.table), np.int32)
        tokens[0, :count] = request.prompt[chunk.start : chunk.stop]
        table[0, : len(chunk.pages)] = chunk.pages
        last = chunk.stop == len(request.prompt)
        return _Part(
            tokens,
            np.int32(chunk.start),
            np.int32(count),
            np.int32(chunk.slot),
            np.int32(request.max_tokens - 1 if last else 0),
            table,
            Wishes(
                np.array([request.temperature], np.float32),
                np.array([request.top_p], np.float32),
                np.array([request.seed], np.uint32),
                np.array([request.min_tokens], np.int32),
            ),
        )

    def _decoder(self, params: _Params) -> Decoder:
        """All but the layers."""
        return nnx.merge(self._graph, params.rest | {"layers": self._unused})

    def _forward(
        self,
        params: _Params,
        cache: _Cache,
        tokens: jax.Array,
        positions: jax.Array,
        paged: _Paged,
    ) -> tuple[jax.Array, _Cache]:
        """The next tokens of some texts through the network.

        Args:
            tokens: [B, L] int32.
            positions: [B, L] int32, where they stand.

        Returns:
            [B, L, D] normed, and the cache with their keys and values.
        """
        model = self._decoder(params)
        x, by = model.embed(tokens), model.turns(positions)
        now: _Cache = []
        for number, (own, kept) in enumerate(zip(params.layers, cache, strict=True)):
            layer: DecoderLayer = nnx.merge(self._layer_graph, own)
            q, k, v = layer.queries_keys_values(x, by)
            kept = paged.write(kept, k, v)
            found = paged.attend(q, kept, self._masks[number % len(self._masks)].window)
            x, _ = layer.finish(x, found)
            now.append(kept)
        return model.norm(x), now

    def _read(
        self,
        params: _Params,
        cache: _Cache,
        tokens: jax.Array,
        start: jax.Array,
        count: jax.Array,
        table: jax.Array,
    ) -> tuple[jax.Array, _Cache]:
        """Parts of texts, each of which begins a page, through the network.

        Args:
            tokens: [B, L] int32.
            start: [B] int32, where the first of each stands.
            count: [B] int32, how many of each are real.
            table: [B, P] int32, pages of each text.
        """
        positions = start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)

        def write(kept: Cache, k: jax.Array, v: jax.Array) -> Cache:
            return written_pages(kept, k, v, table, start, count)

        def attend(q: jax.Array, kept: Cache, window: int | None) -> jax.Array:
            return attend_part(q, kept, table, positions, start + count, window=window)

        return self._forward(params, cache, tokens, positions, _Paged(write, attend))

    def _logits(self, params: _Params, states: jax.Array) -> jax.Array:
        """[B, 1, D] to [B, V], at least float32."""
        logits = self._decoder(params).logits(states)[:, 0]
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def _run_prefill(
        self, params: _Params, cache: _Cache, slots: _Slots, part: _Part
    ) -> tuple[_Cache, _Slots, jax.Array]:
        """A part of a prompt; after the last one its slot is at work."""
        start, count = part.start[None], part.real[None]
        states, cache = self._read(params, cache, part.tokens, start, count, part.table)
        none = jnp.zeros(1, jnp.int32)
        last = jax.lax.dynamic_slice_in_dim(states, part.real - 1, 1, axis=1)
        token = next_tokens(self._logits(params, last), part.wishes, none, self.ends)
        new = _Slots(
            token, start + count, none + 1, part.left * ~self._is_end(token), part.table, part.wishes
        )
        slots = jax.tree.map(lambda whole, own: whole.at[part.slot].set(own[0]), slots, new)
        return cache, slots, token[0]

    def _run_scored(
        self,
        params: _Params,
        cache: _Cache,
        tokens: jax.Array,
        start: jax.Array,
        count: jax.Array,
        table: jax.Array,
        labels: jax.Array,
    ) -> tuple[_Cache, jax.Array]:
        """A part of a text, and of each of its tokens how unlikely the next one, `labels` [C], is: [C] float32."""
        states, cache = self._read(params, cache, tokens, start, count, table)
        logits = self._logits(params, states[0][:, None])
        of_labels = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
        return cache, jax.nn.logsumexp(logits, -1) - of_labels

    def _run_step(
        self, width: int, params: _Params, cache: _Cache, every: _Slots
    ) -> tuple[_Cache, _Slots, jax.Array]:
        """The next token of every slot at work among the first."""
        slots: _Slots = jax.tree.map(lambda x: x[:width], every)
        works = (slots.left > 0).astype(jnp.int32)
        position = slots.position * works
        table, pages = slots.table, sum(len(bank.keys) for bank in cache[0])
        if few := _COPIED * table.size <= pages:
            table, pages = jnp.arange(table.size, dtype=jnp.int32).reshape(table.shape), table.size
        owned = owners(table, works > 0, pages, self.sizes.page)

        def write(kept: Cache, k: jax.Array, v: jax.Array) -> Cache:
            return written(kept, k, v, slots.table, position[:, None], works[:, None] > 0)

        def attend(q: jax.Array, kept: Cache, window: int | None) -> jax.Array:
            kept = pages_of(kept, slots.table) if few else kept
            return attend_step(q, kept, owned, table, position, window=window)

        token, paged = slots.token[:, None], _Paged(write, attend)
        states, cache = self._forward(params, cache, token, position[:, None], paged)
        token = next_tokens(self._logits(params, states), slots.wishes, slots.made, self.ends)
        slots = slots._replace(
            token=token,
            position=position + works,
            made=slots.made + works,
            left=(slots.left - works) * ~self._is_end(token),
        )
        every = jax.tree.map(lambda whole, own: whole.at[:width].set(own), every, slots)
        return cache, every, token

    def _is_end(self, token: jax.Array) -> jax.Array:
        return jnp.isin(token, np.asarray([FAILED, *self.ends], np.int32))


def _widths(slots: int) -> list[int]:
    """So many of the slots, from the first, a step can have, ascending: a text alone need not wait for those of nobody."""
    least = 1 if compiled_for() == "cpu" else _WIDER
    fewer = (least * _WIDER**power for power in range(slots.bit_length()))
    return [*(width for width in fewer if width < slots), slots]


def _apart(params: Any, config: DecoderConfig, policy: Policy, layer: DecoderLayer, weights: str) -> _Params:
    """Stacked parameters, apart and held. What is computed in another dtype than the policy's keeps its own: norms and routers."""

    def cast(path: Any, x: Any) -> Any:
        stays = isinstance(x, Held) or jax.tree_util.keystr(path[-1:], simple=True) in ("scale", "router")
        return x if stays else x.astype(policy.compute_dtype)

    rest = dict(params)
    stacked = rest.pop("layers")
    own = (jax.tree.map(lambda x: x[number], stacked) for number in range(config.num_layers))  # noqa: B023
    layers = [
        jax.tree_util.tree_map_with_path(
            cast, held(layer, one, weights), is_leaf=lambda x: isinstance(x, Held)
        )
        for one in own
    ]
    rest["embedding"] = hold(rest["embedding"], weights, policy.compute_dtype)
    if not config.tied:
        rest["head"] = hold(rest["head"].T, weights, policy.compute_dtype)
    return _Params(layers, rest)


def _structs(function: Any, *args: Any) -> Any:
    """What a jitted function gives, as structs in the places where the compiler puts it."""
    lowered = function.lower(*args)
    places = lowered.compile().output_shardings
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), lowered.out_info, places
    )


def _stopped(slots: _Slots, slot: jax.Array) -> _Slots:
    return slots._replace(left=slots.left.at[slot].set(0))


def _example(tokens: int) -> Chunk:
    """Of the shapes that chunks of so many tokens have."""
    return Chunk(Request(np.zeros(tokens, np.int32), 1), 0, 0, tokens, ())
