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
        due_ns: Server only, `[count]` int64, when each query is due after the start.
    """

    indices: np.ndarray
    samples_per_query: int
    count: int
    duration_ns: int
    due_ns: np.ndarray | None = None


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
    """The queries of one phase over one loaded set."""
    requested = settings.requested
    scenario = settings.scenario
    offline, multi_stream = scenario == TestScenario.Offline, scenario == TestScenario.MultiStream
    size = len(loaded.indices)
    samples_per_query = loaded.distribution_end if accuracy and offline else settings.samples_per_query
    min_queries = settings.min_query_count
    duration_ns = settings.target_duration_ns * (1 if scenario == TestScenario.Server else 2)
    if accuracy or requested.performance_issue_unique:
        duration_ns = 0
        min_queries = size // samples_per_query if samples_per_query else 0

    sampler = Mt19937(requested.sample_index_rng_seed)
    stride = samples_per_query if multi_stream else 1
    starts = np.arange(0, loaded.distribution_end, stride, dtype=np.int64)
    permutation = sampler.shuffled(starts) if accuracy else None
    unique = sampler.shuffled(starts)
    equal_issue = requested.sample_concatenate_permutation
    passes = _equal_issue_passes(sampler, size, -(-min_queries // size), wanted=equal_issue)

    if equal_issue and not accuracy:
        if offline:
            samples_per_query += -samples_per_query % size
        else:
            min_queries += -min_queries % size

    pad_by = size if equal_issue and not offline else 0
    due_ns = None
    if scenario == TestScenario.Server:
        due_ns, generated_ns = _poisson_due_times(settings, duration_ns, min_queries, pad_by)
        count = len(due_ns)
    else:
        count, generated_ns = _evenly_spaced(settings, duration_ns, min_queries, pad_by)
    if offline:
        indices = _offline_indices(settings, loaded, samples_per_query, sampler)
        return Queries(indices, samples_per_query, count, generated_ns)

    if requested.performance_issue_unique:
        positions = unique[:count]
    elif requested.performance_issue_same:
        _check_same_index(settings, size)
        positions = np.full(count, requested.performance_issue_same_index, np.int64)
    elif equal_issue and not multi_stream:
        positions = np.resize(passes, count)
    elif permutation is not None:
        positions = permutation[:count]
    else:
        positions = sampler.integers_below(loaded.distribution_end, count)
    if multi_stream:
        positions = (positions[:, None] + np.arange(samples_per_query)).reshape(-1)
    return Queries(loaded.indices[positions], samples_per_query, count, generated_ns, due_ns)


def _equal_issue_passes(sampler: Mt19937, size: int, passes: int, *, wanted: bool) -> np.ndarray:
    """`passes` permutations of `range(size)`, each a shuffle of the one before, `[passes * size]`.

    The draws are made in any case; the swaps only if they are wanted.
    """
    if not wanted:
        for _ in range(passes):
            sampler.shuffle_draws(size)
        return np.empty(0, np.int64)
    order = np.arange(size, dtype=np.int64)
    result = []
    for _ in range(passes):
        order = sampler.shuffled(order)
        result.append(order)
    return np.concatenate(result) if result else order[:0]


def _offline_indices(
    settings: EffectiveSettings, loaded: LoadableSet, count: int, sampler: Mt19937
) -> np.ndarray:
    """The one query of Offline: the loaded set over and over, each pass shuffled in equal-issue."""
    requested = settings.requested
    if requested.performance_issue_same:
        _check_same_index(settings, len(loaded.indices))
        return np.full(count, loaded.indices[requested.performance_issue_same_index], np.int64)
    if requested.sample_concatenate_permutation:
        passes = [sampler.shuffled(loaded.indices) for _ in range(count // len(loaded.indices))]
        return np.concatenate(passes)
    return np.resize(loaded.indices, count)


def _check_same_index(settings: EffectiveSettings, size: int) -> None:
    """The official package reads past the end of the set."""
    index = settings.requested.performance_issue_same_index
    if index >= size:
        raise UserError(
            f"TestSettings.performance_issue_same_index is {index}, but only {size} samples are loaded; "
            "give a smaller one."
        )


def _evenly_spaced(
    settings: EffectiveSettings, duration_ns: int, min_queries: int, pad_by: int
) -> tuple[int, int]:
    """How many queries fill the duration at the expected rate, and the time they stand for.

    Queries are generated until there are `min_queries` and the one before the next is due
    at `duration_ns` or later; equal-issue then fills up to a multiple of `pad_by`.
    """
    period = int(1.0 / settings.target_qps * 1e9) if settings.target_qps else 0
    enough = -(-duration_ns // period) + 1 if duration_ns > 0 else 0
    count = _query_count(enough, min_queries, pad_by)
    return count, count * period


def _poisson_due_times(
    settings: EffectiveSettings, duration_ns: int, min_queries: int, pad_by: int
) -> tuple[np.ndarray, int]:
    """When each query is due, `[queries]` int64, and when the next one would have been."""
    engine = Mt19937(settings.requested.schedule_rng_seed)
    due = np.zeros(1, np.int64)
    count = 0
    while not count or len(due) <= count:
        short = max(min_queries + pad_by, int(duration_ns * 1e-9 * settings.target_qps)) - len(due)
        gaps = engine.exponential_ns(settings.target_qps, max(short, len(due) // 16) + 1000)
        due = np.concatenate([due, due[-1] + np.cumsum(gaps)])
        enough = int(np.searchsorted(due, duration_ns)) + 1 if duration_ns > 0 else 0
        count = _query_count(enough, min_queries, pad_by)
        if count == 0:
            break
    return due[:count], int(due[count])


def _query_count(enough: int, min_queries: int, pad_by: int) -> int:
    """The generated queries: at least `enough` for the duration and `min_queries`, in whole passes."""
    if enough <= min_queries:
        return min_queries
    if not pad_by:
        return enough
    return min_queries + -(-(enough - min_queries) // pad_by) * pad_by
