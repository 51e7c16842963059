"""What is said of tensors that stay whole and of work that is repeated; where frozen parameters lie."""

import json

import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from mlperf_jax.parallel import unsplit
from mlperf_jax.parallel.layout import STRATEGIES, Strategy
from mlperf_jax.parallel.mesh import make_layout
from mlperf_jax.planning import plan, topology
from mlperf_jax.training.engine import Engine
from tests import door, toys, toys_text

MESH = {"data": 2, "fsdp": 4}
TOGETHER = '(batch = [["data", "fsdp"]] in a strategy file splits the batch over all of them).'


def said(strategy, cls=toys_text.Tagger):
    engine = Engine(toys.make(cls), make_layout(strategy))
    for program in engine.programs:
        engine.lower(program)
    return unsplit.repeated(engine.layout, engine.state)


def test_devices_that_repeat_work_are_named():
    choice = {"batch": ("data", "fsdp")}
    assert said(Strategy("s", MESH, choice)) == (
        "mesh axis fsdp (4 devices) splits neither the batch nor a tensor: its devices repeat the same work "
        + TOGETHER
    )
    assert said(Strategy("s", MESH, choice, shard_params="fsdp")) == (
        "mesh axis fsdp (4 devices) splits parameters but not the batch: its devices compute from the same "
        "examples and repeat what the compiler does not split by itself " + TOGETHER
    )
    two = said(Strategy("s", {"a": 2, "b": 2, "c": 2}, {"batch": ("b",)}))
    assert two.count("repeat the same work") == 2 and '[["b", "a", "c"]]' in two


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy("s", MESH, {"batch": (("data", "fsdp"),)}, shard_params="fsdp"),
        Strategy("s", {"data": 8, "fsdp": 1}, {"batch": ("data", "fsdp")}),
        *(STRATEGIES[name] for name in ("zero1", "fsdp_tp")),
    ],
)
def test_nothing_is_said_where_all_share_the_work(strategy):
    assert said(strategy) == ""


def test_an_axis_of_activations_alone_shares_the_work():
    """Nothing in the state or the batch shows it: only what the model pins while it is traced."""
    strategy = Strategy("s", {"data": 4, "m": 2}, {"batch": ("data",), "height": ("m",)})
    assert said(strategy, toys.SmallResNet) == ""
    assert "axis m (2 devices) splits neither" in said(strategy)


def test_train_says_so(tmp_path):
    (tmp_path / "mine.toml").write_text('[mesh]\ndata = 2\nfsdp = 4\n[rules]\nbatch = ["data", "fsdp"]\n')
    done = door.run(
        tmp_path,
        *("--workload=tests.toys_text:Tagger", "--platform=cpu", "--cpu_devices=8", "--sharding=mine.toml"),
        *("--config.max_epochs=1", f"--results_dir={tmp_path}"),
        **door.LIGHTLY,
    )
    assert done.stderr.count("fsdp (4 devices) splits neither the batch nor a tensor") == 1, done.stderr


# Frozen parameters.


class _Large(nnx.Module):
    def __init__(self, *, policy, rngs):
        def zeros(rows, columns, axes=None):
            return nnx.Param(
                jnp.zeros((rows, columns), policy.param_dtype), **({"axes": axes} if axes else {})
            )

        self.base = nnx.Dict(
            named=zeros(4096, 4096, ("embed", "mlp")),
            plain=zeros(4096, 4096),  # what an imported part of a model often is
            odd=zeros(63, 65),
        )
        self.head = zeros(4096, toys_text.TAGS, ("embed", None))


class Large(toys_text.Tagger):
    """Tagger over frozen parameters of 4096 x 4096, for shapes alone."""

    def build_model(self, rngs):
        return _Large(policy=self.policy, rngs=rngs)

    def loss(self, model, batch, key):
        x = model.base["named"][...][batch["tokens"]] @ model.base["plain"][...]
        return ((x @ model.head[...]) ** 2).sum(), jnp.float32(batch["tokens"].size)


@pytest.mark.parametrize(
    ("name", "named", "plain"),
    [
        ("dp", P(), P()),
        ("zero1", P(), P()),
        ("fsdp", P("data"), P("data")),
        ("tp", P(None, "model"), P()),
        ("fsdp_tp", P("data", "model"), P("data")),
    ],
)
def test_frozen_parameters_lie_as_trained_ones(name, named, plain):
    workload, layout = toys.make(Large), make_layout(STRATEGIES[name])
    state = Engine(workload, layout).state
    base = state["frozen"]["base"]
    assert base["named"].sharding.spec == named and base["plain"].sharding.spec == plain
    assert base["odd"].sharding.spec == P()  # no dimension divides
    assert workload.served_struct(layout)["frozen"]["base"]["named"].sharding.spec == named
    whole = [row["name"] for row in unsplit.stayed_whole(state, layout.strategy)]
    assert ("frozen['base']['odd']" in whole) == name.startswith("fsdp")


def test_plan_counts_what_is_frozen(monkeypatch, tmp_path):
    monkeypatch.setattr(topology, "missing_compiler", lambda where: "install it")
    where = topology.parse("h200:1x8")

    def planned(strategy):
        return plan.plan_strategy(toys.make(Large), strategy, where, cache_dir=tmp_path)

    large, odd, head = 4096 * 4096 * 4, 63 * 65 * 4, 4096 * toys_text.TAGS * 4
    dp, fsdp = planned(STRATEGIES["dp"]), planned(STRATEGIES["fsdp"])
    assert dp.hbm["frozen"] == 2 * large + odd and dp.hbm["parameters"] == head
    assert fsdp.hbm["frozen"] == 2 * large // 8 + odd and fsdp.hbm["parameters"] == head // 8
    assert dp.hbm["other_state"] == head + 8  # the running average, step and seed
    assert dp.hbm["held"] == sum(
        dp.hbm[part] for part in ("parameters", "optimizer", "frozen", "other_state", "batch")
    )
    assert (
        dp.repeated == ""
        and "fsdp (4 devices)" in planned(Strategy("s", MESH, {"batch": ("data",)})).repeated
    )
    json.dumps(dp.hbm)
