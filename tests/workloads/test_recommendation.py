"""DLRM as a workload: layouts agree, runs go on where they stopped, quality and answers are what they claim."""

import functools
import hashlib
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.mesh import make_layout, single_device_layout
from mlperf_jax.training.engine import Engine
from mlperf_jax.workloads import click_groups
from tests import door, toys
from tests.toys_clicks import SmallDCNv2, SmallDLRM

STEPS = 10


@pytest.fixture(scope="module", autouse=True)
def closed_runs(tmp_path_factory):
    """Closed runs of the whole networks, tables cut to a 100,000th of their rows: folders and processes.

    They start before the first test, beside which they have a core of their own.
    """
    started = {}
    for workload in ("dlrm", "dlrm_dcnv2"):
        folder = tmp_path_factory.mktemp(workload)
        cuts = ("data.table_fraction=1e-5", "batch_size=64", "eval_batch_size=256", "evals_per_epoch=2")
        started[workload] = folder, door.start_closed(folder, workload, 640, *cuts)
    yield started
    for _, process in started.values():
        process.kill()


def engine_of(cls, strategy, precision="float64"):
    groups = 8 if strategy == "table_wise" else 1
    workload = toys.make(cls, precision, model__table_groups=groups, model__width=8)
    return Engine(workload, make_layout(STRATEGIES[strategy]) if strategy else single_device_layout())


def whole(workload, state):
    """A state in which tables are tables, so that states of any grouping compare."""
    state = jax.device_get(state)
    for part in ("params", "opt_state"):
        state[part]["table"] = jax.tree.map(workload.tables.unstacked, state[part]["table"])
    return state


def stacked(workload, state):
    for part in ("params", "opt_state"):
        is_tables = lambda x: isinstance(x, list)  # noqa: E731
        state[part]["table"] = jax.tree.map(
            lambda tables: workload.tables.stacked(tables, np.float64),
            state[part]["table"],
            is_leaf=is_tables,
        )
    return state


@functools.cache
def trained(cls, strategy):
    """Losses of ten steps, and the last state, from one initial state on the same batches."""
    with jax.enable_x64(True):
        engine = engine_of(cls, strategy)
        engine.compile("train_step")
        state = stacked(engine.workload, jax.tree.map(np.copy, initial(cls)))
        state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, engine.state))
        losses = []
        batches = engine.workload.dataset.train_batches(seed=1, batch_size=64, start_step=0, rows=engine.rows)
        for _ in range(STEPS):
            before = jax.tree.leaves(state)
            state, metrics = engine.train(state, engine.place(next(batches), engine.batch), steps=1)
            losses.append(float(metrics["loss"]))
            assert all(leaf.is_deleted() for leaf in before), "a donated buffer is still there"
        batches.close()
        return np.array(losses), whole(engine.workload, state)


@functools.cache
def initial(cls):
    with jax.enable_x64(True):
        engine = engine_of(cls, None)
        engine.compile("init")
        return whole(engine.workload, engine.init(1))


@pytest.mark.parametrize(
    ("cls", "strategy"),
    [
        *((SmallDLRM, s) for s in ("dp", "fsdp", "tp", "row_wise", "table_wise")),
        *((SmallDCNv2, s) for s in ("zero1", "fsdp_tp", "column_wise", "row_wise")),
    ],
)
def test_ten_steps_agree_with_one_device(cls, strategy):
    expected_losses, expected = trained(cls, None)
    losses, state = trained(cls, strategy)
    assert expected_losses[-1] < expected_losses[0]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and (a.dtype == np.float64 or not np.issubdtype(a.dtype, np.floating))
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_step_touches_only_rows_that_were_looked_up():
    workload = toys.make(SmallDCNv2, "float64")
    before, (_, after) = initial(SmallDCNv2), trained(SmallDCNv2, None)
    batches = workload.dataset.train_batches(seed=1, batch_size=64, start_step=0, rows=slice(0, 64))
    sparse = np.concatenate([next(batches)["sparse"] for _ in range(STEPS)])
    batches.close()
    for table, size in enumerate(workload.tables.sizes):
        seen = np.unique(sparse[:, workload.tables.table_of == table])
        others = np.setdiff1d(np.arange(size), seen)
        for part in ("params", "opt_state"):
            a, b = (jax.tree.leaves(s[part]["table"], is_leaf=np.isscalar)[table] for s in (before, after))
            np.testing.assert_array_equal(a[others], b[others])
            assert (a[seen] != b[seen]).any(axis=1).all()


@functools.cache
def evaluated(strategy):
    """An engine, a state of seed 1, and what `evaluate` says."""
    engine = engine_of(SmallDLRM, strategy, "float32")
    engine.compile("init", "eval_init", "eval_step", "eval_count")
    state = engine.init(1)
    return engine, state, engine.workload.evaluate(engine, state)["quality"]


def by_hand(workload, state):
    """Probabilities of the evaluation set, and scikit-learn's area."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the independent judge")
    fields = workload.dataset.read_eval(np.arange(workload.num_eval), ("dense", "sparse", "label"))
    probability = np.asarray(jax.jit(lambda s, f: jax.nn.sigmoid(workload.model(s)(f)))(state, fields))
    return probability, metrics.roc_auc_score(fields["label"], probability)


def test_quality_is_the_area_over_all_of_the_evaluation_set():
    engine, state, quality = evaluated(None)
    _, expected = by_hand(engine.workload, state)
    assert quality == pytest.approx(expected, abs=1e-6)
    assert evaluated("row_wise")[2] == pytest.approx(expected, abs=1e-5)


def test_groups_are_mlperfs():
    """The published trace of the reference: https://zenodo.org/record/3941795, its MD5 as its README has it."""
    bounds = click_groups.group_bounds(89_137_319).tolist()
    assert len(bounds) - 1 == 330_067
    lines = "".join(f"{a}, {b}, {b - a}\n" for a, b in zip(bounds, bounds[1:], strict=False))
    assert hashlib.md5(lines.encode()).hexdigest() == "3db90209564316f2506c99cc994ad0b2"


def test_answers_are_probability_and_label_of_each_example():
    engine, state, quality = evaluated(None)
    workload = engine.workload
    indices = np.arange(workload.num_samples)[::-1]
    inputs = workload.read_samples(indices)
    sizes = workload.sample_rows(indices)
    assert sizes.sum() == workload.num_eval and sizes.max() <= workload.most_rows
    for name, (shape, dtype) in workload.sample_spec().items():
        assert inputs[name].shape == (sizes.sum(), *shape) and inputs[name].dtype == dtype
    rows = np.split(np.asarray(jax.jit(workload.predict)(state, inputs)), np.cumsum(sizes)[:-1])
    answers = [
        np.asarray(workload.logged_answer(i, row)).tobytes() for i, row in zip(indices, rows, strict=True)
    ]
    probability, _ = by_hand(workload, state)
    pairs = np.frombuffer(b"".join(answers[::-1]), "<f4").reshape(-1, 2)
    np.testing.assert_allclose(pairs[:, 0], probability, rtol=1e-5)
    np.testing.assert_array_equal(
        pairs[:, 1], workload.dataset.read_eval(np.arange(1003), ("label",))["label"]
    )
    assert workload.answered_figures(indices, answers)["quality"] == pytest.approx(quality, abs=1e-6)
    with pytest.raises(ValueError, match="for each example"):
        workload.answered_figures(indices, [answers[0][:-1], *answers[1:]])["quality"]


def test_groups_are_answered_together_as_one_by_one():
    """Batches of the ladder, filled up with whatever rows: what belongs to a group is what it has alone."""
    engine, state, _ = evaluated(None)
    workload = engine.workload
    indices = np.arange(min(workload.num_samples, 5))
    sizes = workload.sample_rows(indices)
    alone = [
        np.asarray(jax.jit(workload.predict)(state, workload.read_samples(indices[i : i + 1])))
        for i in indices
    ]
    together = workload.read_samples(indices)
    padded = {name: np.resize(x, (1400, *x.shape[1:])) for name, x in together.items()}
    answers = np.asarray(jax.jit(workload.predict)(state, padded))[: sizes.sum()]
    np.testing.assert_allclose(answers, np.concatenate(alone), rtol=1e-5)


def test_more_evaluations_than_batches():
    workload = toys.make(SmallDLRM, evals_per_epoch=21)
    with pytest.raises(UserError, match="evals_per_epoch=21"):
        list(workload.blocks())


# Through the door.

RUN = (
    "--workload=tests.toys_clicks:SmallDCNv2",
    "--seed=5",
    "--results_dir=results",
    "--config.max_epochs=12",
    "--config.evals_per_epoch=1",
)


def final_state(cwd):
    with ocp.CheckpointManager(door.run_folder(cwd / "results") / "checkpoints") as manager:
        state = manager.restore(
            manager.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore())
        )["state"]
    return jax.tree.leaves_with_path(state)


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    for folder in (undisturbed, stopped):
        folder.mkdir()
    beside = door.start(undisturbed, *RUN, **door.LIGHTLY)
    process = door.start(stopped, *RUN, **door.LIGHTLY)
    door.wait_for(
        process, lambda: any(b"eval_stop" in p.read_bytes() for p in door.logs(stopped / "results"))
    )
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert door.run(stopped, *RUN, **door.LIGHTLY).returncode == 1
    assert door.finish(beside).returncode == 1
    for (path, a), (_, b) in zip(final_state(undisturbed), final_state(stopped), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    ("workload", "ruleset", "complaints"),
    [
        ("dlrm", "2.1.0", [("eval_accuracy", "0.8025")]),
        ("dlrm_dcnv2", "4.0.0", [("eval_samples", "CHECK"), ("eval_accuracy", "0.80275")]),
    ],
)
def test_closed_on_made_up_data_lacks_only_what_that_cannot_have(workload, ruleset, complaints, closed_runs):
    folder, process = closed_runs[workload]
    ended = door.finish(process)
    assert ended.returncode == 1, ended.stderr
    assert "random clicks, not MLPerf's data" in ended.stdout and "not reached" in ended.stdout
    (log,) = door.logs(folder / "results", "closed")
    said = door.complaints(log, ruleset)
    assert len(said) == len(complaints), said
    for line, parts in zip(said, complaints, strict=True):
        assert all(part in line for part in parts), line
