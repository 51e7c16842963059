"""Which samples are loaded, which are asked for, and when: drawn before a phase starts.

The order of the draws is the official one, including draws whose result is not used:
they move the engine on, and with it all that follows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from loadgen_py.random import Mt19937
from loadgen_py.settings import EffectiveSettings, TestScenario
from mlperf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LoadableSet:
    """Samples that are in memory together.

    Attributes:
        indices: `[N]` int64 indices into the sample library; in MultiStream the first
            `samples_per_query - 1` are repeated at the end, so that every start index
            has a whole query after it.
        distribution_end: the number of indices without that repetition.
    """

    indices: np.ndarray
    distribution_end: int


@dataclasses.dataclass(frozen=True)
class Queries:
    """The queries generated for one phase, all samples in one array.

    Attributes:
        indices: `[count * samples_per_query]` int64 indices into the sample library.
        samples_per_query: samples of each query.
        count: the number of queries.
        duration_ns: what the official log calls the generated duration.
        due_ns: Server only, else empty: `[count]` int64, when each query is due after the start.
    """

    indices: np.ndarray
    samples_per_query: int
    count: int
    duration_ns: int
    due_ns: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))


def loadable_sets(settings: EffectiveSettings, total_count: int, *, accuracy: bool) -> list[LoadableSet]:
    """The sets of a phase: shuffled indices cut into parts of the performance sample count."""
    wanted = settings.accuracy_sample_count if accuracy else settings.performance_sample_count
    count = min(wanted, total_count)
    order = Mt19937(settings.requested.qsl_rng_seed).shuffled(np.arange(count, dtype=np.int64))
    size = settings.performance_sample_count or count
    padding = settings.samples_per_query - 1 if settings.scenario == TestScenario.MultiStream else 0
    sets = []
    for start in range(0, count, size):
        part = order[start : start + size]
        sets.append(LoadableSet(np.resize(part, len(part) + padding), len(part)))
    return sets


def generate_queries(settings: EffectiveSettings, loaded: LoadableSet, *, accuracy: bool) -> Queries:
    """The queries of one phase over one loaded set: how many, when, and which samples they ask for.

    A Server of 4 samples at 100 queries a second, for at least 25 ms:

    >>> from loadgen_py.settings import TestSettings, resolve
    >>> asked = TestSettings(
    ...     TestScenario.Server, server_target_qps=100.0, min_duration_ms=25, min_query_count=2, qsl_rng_seed=3
    ... )
    >>> settings = resolve(asked, performance_count=4, total_count=4)
    >>> (loaded,) = loadable_sets(settings, 4, accuracy=False)
    >>> loaded.indices.tolist()
    [3, 1, 0, 2]

    The first query is due at once, the others after gaps drawn with a mean of 10 ms; the first
    that is due at 25 ms or later is the last. Each draws a position in the loaded set, here 2, 3, 2:

    >>> queries = generate_queries(settings, loaded, accuracy=False)
    >>> queries.due_ns.tolist()
    [0, 8985603, 27581645]
    >>> queries.indices.tolist()
    [0, 2, 0]

    In accuracy mode time does not count, and each sample is asked for once:

    >>> generate_queries(settings, loaded, accuracy=True).indices.tolist()
    [3, 0, 1, 2]
    """
    requested, scenario, size = settings.requested, settings.scenario, len(loaded.indices)
    samples_per_query, min_queries = settings.samples_per_query, settings.min_query_count
    # Where nothing arrives by the clock, enough for a system twice as fast as expected.
    duration_ns = settings.target_duration_ns * (1 if scenario == TestScenario.Server else 2)
    if accuracy and scenario == TestScenario.Offline:
        samples_per_query = loaded.distribution_end
    if accuracy or requested.performance_issue_unique:
        duration_ns = 0
        min_queries = size // samples_per_query if samples_per_query else 0
    passes = -(-min_queries // size)  # over the set, at least

    whole = 1  # the queries are a multiple of this
    if requested.sample_concatenate_permutation:
        if scenario == TestScenario.Offline:
            samples_per_query = _rounded_up(samples_per_query, size)
        elif not accuracy:
            whole = size
    if scenario == TestScenario.Server:
        due_ns, generated_ns = _poisson_due_times(settings, duration_ns, min_queries, whole)
        count = len(due_ns)
    else:
        due_ns = np.empty(0, np.int64)
        count, generated_ns = _evenly_spaced(settings, duration_ns, min_queries, whole)
    positions = _positions(settings, loaded, count, samples_per_query, passes, accuracy)
    return Queries(loaded.indices[positions], samples_per_query, count, generated_ns, due_ns)


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _positions(
    settings: EffectiveSettings,
    loaded: LoadableSet,
    count: int,
    samples_per_query: int,
    passes: int,
    accuracy: bool,
) -> np.ndarray:
    """Where in the loaded set the samples of `count` queries are, `[count * samples_per_query]` int64.

    One engine draws, in this order and whether or not the result is used: a shuffle of the
    positions where a query may start for accuracy mode, another one of them for
    `performance_issue_unique`, a shuffle of the set for each of the `passes` of
    `sample_concatenate_permutation`; then what the queries themselves need.
    """
    requested, size = settings.requested, len(loaded.indices)
    offline = settings.scenario == TestScenario.Offline
    multi_stream = settings.scenario == TestScenario.MultiStream
    concatenate = requested.sample_concatenate_permutation
    sampler = Mt19937(requested.sample_index_rng_seed)
    starts = np.arange(0, loaded.distribution_end, samples_per_query if multi_stream else 1, dtype=np.int64)
    each_once = sampler.shuffled(starts) if accuracy else None
    unique = sampler.shuffled(starts)
    concatenated = _concatenated_passes(sampler, size, passes, wanted=concatenate)

    if requested.performance_issue_unique and not offline:
        positions = unique[:count]
    elif requested.performance_issue_same:
        same = _same_index(requested.performance_issue_same_index, size)
        positions = np.full(samples_per_query if offline else count, same, np.int64)
    elif offline:
        order = np.arange(size, dtype=np.int64)
        if concatenate:
            order = np.concatenate([sampler.shuffled(order) for _ in range(samples_per_query // size)])
        positions = np.resize(order, samples_per_query)
    elif concatenate and not multi_stream:
        positions = np.resize(concatenated, count)
    elif each_once is not None:
        positions = each_once[:count]
    else:
        positions = sampler.integers_below(loaded.distribution_end, count)
    if multi_stream:
        positions = (positions[:, None] + np.arange(samples_per_query)).reshape(-1)
    return positions


def _concatenated_passes(sampler: Mt19937, size: int, passes: int, *, wanted: bool) -> np.ndarray:
    """`passes` permutations of `range(size)`, each a shuffle of the one before, `[passes * size]`.

    The draws are made in any case; the swaps only if they are wanted, else the result is empty.
    """
    orders = [np.arange(size, dtype=np.int64)]
    for _ in range(passes):
        if wanted:
            orders.append(sampler.shuffled(orders[-1]))
        else:
            sampler.shuffle_draws(size)
    return np.concatenate([orders[0][:0], *orders[1:]])


def _same_index(index: int, size: int) -> int:
    """The index itself, if it is one of the loaded set: the official package reads past the end."""
    if index >= size:
        raise UserError(
            f"TestSettings.performance_issue_same_index is {index}, but only {size} samples are loaded; "
            "give a smaller one."
        )
    return index


def _evenly_spaced(
    settings: EffectiveSettings, duration_ns: int, min_queries: int, whole: int
) -> tuple[int, int]:
    """How many queries fill the duration at the expected rate, and the time they stand for.

    Queries are generated until there are `min_queries` and the one before the next is due
    at `duration_ns` or later, in multiples of `whole`.
    """
    period = int(1.0 / settings.target_qps * 1e9) if settings.target_qps else 0
    enough = -(-duration_ns // period) + 1 if duration_ns > 0 else 0
    count = _rounded_up(max(enough, min_queries), whole)
    return count, count * period


def _poisson_due_times(
    settings: EffectiveSettings, duration_ns: int, min_queries: int, whole: int
) -> tuple[np.ndarray, int]:
    """When each query is due, `[queries]` int64, and when the next one would have been.

    The first is due at once; how many there are is decided as in `_evenly_spaced`.
    """
    engine = Mt19937(settings.requested.schedule_rng_seed)
    due = np.zeros(1, np.int64)
    while True:
        short = max(min_queries + whole, int(duration_ns * 1e-9 * settings.target_qps)) - len(due)
        gaps = engine.exponential_ns(settings.target_qps, max(short, len(due) // 16) + 1000)
        due = np.concatenate([due, due[-1] + np.cumsum(gaps)])
        enough = int(np.searchsorted(due, duration_ns)) + 1 if duration_ns > 0 else 0
        count = _rounded_up(max(enough, min_queries), whole)
        if len(due) > count:
            return due[:count], int(due[count])
