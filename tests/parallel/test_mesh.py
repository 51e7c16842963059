"""Sizes of mesh axes: what the user asked for, what the strategy wants, what the devices allow."""

import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf_jax.errors import UserError
from mlperf_jax.parallel.layout import STRATEGIES, Strategy
from mlperf_jax.parallel.mesh import find_strategy, make_layout, mesh_sizes, parse_mesh


def test_parse_mesh():
    assert parse_mesh("data:4,model:2") == {"data": 4, "model": 2}
    assert parse_mesh("data:-1") == {"data": -1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data",
        "data:",
        "data:x",
        "data:0",
        "data:2,data:4",
        "data:2,,model:4",
        "1:2",
        "data:--1",
        "data:-2",
        "data:²",
    ],
)
def test_parse_mesh_refuses(text):
    with pytest.raises(UserError, match="is not of the form axis:size,axis:size"):
        parse_mesh(text)


@given(st.text(alphabet="data:,-12 x", max_size=12))
def test_parse_mesh_gives_sizes_or_a_sentence(text):
    try:
        sizes = parse_mesh(text)
    except UserError:
        return
    assert sizes and all(name.isidentifier() and size for name, size in sizes.items())


@given(
    strategy=st.sampled_from(list(STRATEGIES.values())),
    asked=st.dictionaries(st.sampled_from(("data", "model")), st.sampled_from((-1, 1, 2, 3, 4, 8))),
    devices=st.integers(1, 16),
)
def test_mesh_sizes_make_up_the_devices_or_say_so(strategy, asked, devices):
    second = (*strategy.mesh, None)[1]
    possible = [
        {"data": d, second: devices // d} if second else {"data": d}
        for d in range(1, devices + 1)
        if devices % d == 0 and (second or d == devices)
    ]
    wanted = {**strategy.mesh, **asked}
    fitting = [sizes for sizes in possible if all(wanted[a] in (-1, n) for a, n in sizes.items())]
    try:
        sizes = mesh_sizes(strategy, asked, devices)
    except UserError as error:
        unknown = set(asked) - set(strategy.mesh)
        assert unknown or not fitting or list(wanted.values()).count(-1) > 1, error
        return
    assert sizes in fitting
    assert math.prod(sizes.values()) == devices


def test_mesh_sizes_name_the_mend():
    with pytest.raises(
        UserError, match=r"Mesh data:3,model:2 of strategy tp does not make up 8 devices; give --mesh"
    ):
        make_layout(STRATEGIES["tp"], {"data": 3})
    with pytest.raises(UserError, match="Strategy dp has no mesh axis 'model'; its axes are data"):
        make_layout(STRATEGIES["dp"], {"model": 2})
    with pytest.raises(UserError, match="There is no --sharding=ddp; use dp, zero1"):
        find_strategy("ddp")


def test_mesh_holds_every_device_once():
    mesh = make_layout(STRATEGIES["fsdp_tp"], {"model": 4}).mesh
    assert dict(mesh.shape) == {"data": 2, "model": 4}
    assert sorted(d.id for d in mesh.devices.flat) == [d.id for d in jax.devices()]
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_a_strategy_of_ones_own():
    mine = Strategy("mine", {"data": 2, "stage": -1}, {"batch": ("data", "stage")})
    layout = make_layout(mine)
    assert dict(layout.mesh.shape) == {"data": 2, "stage": 4}
    assert layout.rows(16) == slice(0, 16)
