"""The reader of compiled programs, and the two counts of FLOPs, against counts by hand and by brute force."""

import collections
import itertools
import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from mlperf_jax.parallel.chips import CHIPS
from mlperf_jax.planning import cost, cost_network, cost_time, hlo, topology
from mlperf_jax.planning.replica_groups import replica_groups
from mlperf_jax.usual_loops import usually

# A loop of 6 trips around a product of 8x16 and 16x16 that takes 300 cycles, with an all-gather in it, and
# after it an all-reduce that 500 cycles of other work hide in part.
PROGRAM = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,16]{1,0})->f32[8,16]{1,0}}

%fused (p0: f32[8,16], p1: f32[16,16]) -> f32[8,16] {
  %p0 = f32[8,16]{1,0:T(8,128)} parameter(0)
  %p1 = f32[16,16]{1,0:T(8,128)} parameter(1)
  ROOT %dot.1 = f32[8,16]{1,0:T(8,128)} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (s: (s32[], f32[8,16], f32[16,4])) -> (s32[], f32[8,16], f32[16,4]) {
  %s = (s32[], f32[8,16]{1,0:T(8,128)}, f32[16,4]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %part = f32[16,4]{1,0:T(8,128)} get-tuple-element(%s), index=2
  %whole = f32[16,16]{1,0:T(8,128)} all-gather(%part), channel_id=1, replica_groups=[2,4]<=[8], dimensions={1}
  %y = f32[8,16]{1,0:T(8,128)} fusion(%x, %whole), kind=kOutput, calls=%fused, \
metadata={op_name="jit(step)/dot_general"}, backend_config={"window_config":{"estimated_cycles":"300"}}
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[8,16]{1,0:T(8,128)}, f32[16,4]{1,0:T(8,128)}) tuple(%next, %y, %part)
}

%condition (c: (s32[], f32[8,16], f32[16,4])) -> pred[] {
  %c = (s32[], f32[8,16]{1,0:T(8,128)}, f32[16,4]{1,0:T(8,128)}) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  %limit = s32[] constant(6)
  ROOT %less = pred[] compare(%n, %limit), direction=LT
}

ENTRY %main (arg: f32[8,16], w: f32[16,4]) -> f32[8,16] {
  %arg = f32[8,16]{1,0:T(8,128)} parameter(0), metadata={op_name="state[\\'x\\']"}
  %w = f32[16,4]{1,0:T(8,128)} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,16]{1,0:T(8,128)}, f32[16,4]{1,0:T(8,128)}) tuple(%zero, %arg, %w)
  %loop = (s32[], f32[8,16]{1,0:T(8,128)}, f32[16,4]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
  %z = f32[8,16]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %sent = f32[8,16]{1,0:T(8,128)} all-reduce-start(%z), channel_id=2, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  %other = f32[8,16]{1,0:T(8,128)} multiply(%z, %z), backend_config={"window_config":{"estimated_cycles":"500"}}
  %got = f32[8,16]{1,0:T(8,128)} all-reduce-done(%sent)
  ROOT %last = f32[8,16]{1,0:T(8,128)} add(%got, %other), backend_config={"window_config":{"estimated_cycles":"100"}}
}
"""


class Device:
    """Stands for a TPU that is not there."""

    def __init__(self, number, coords):
        self.id, self.coords = number, coords


class Mesh:
    """2 x 4 devices of a v5e:2x4, rows of the torus being "data"."""

    shape = {"data": 2, "model": 4}
    devices = np.array([[Device(4 * r + c, (r, c, 0)) for c in range(4)] for r in range(2)])


def network():
    return cost_network.Network(topology.parse("v5e:2x4"), Mesh)


def test_loops_multiply_what_is_in_them():
    module = hlo.parse(PROGRAM)
    assert module.entry == "main"
    assert module.executions == {"fused": 6, "add": 0, "body": 6, "condition": 6, "main": 1}
    assert set(module.scheduled) == {"main", "body", "condition"}
    assert module.unknown_loops == ()
    assert cost.hlo_flops(module) == 6 * 2 * 8 * 16 * 16


def test_what_a_kernel_says_of_itself_ends_no_computation():
    """As splash attention does, over lines of which one begins with braces; the kernel's own count stands after them."""
    kernel = """  %attended = f32[8,16]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(step)/splash"}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"700"}}}
"""
    module = hlo.parse(PROGRAM.replace("  %whole =", kernel + "  %whole ="))
    assert module.executions == hlo.parse(PROGRAM).executions
    assert module.computations["body"]["attended"].op_name == "jit(step)/splash"
    assert cost.hlo_flops(module) == 6 * (700 + 2 * 8 * 16 * 16)
    other_thread = hlo.parse(
        PROGRAM.replace("\n}\n\n%condition", '\n}, execution_thread="sparsecore"\n\n%condition')
    )
    assert other_thread.executions == module.executions


def test_trip_count_known_or_carried_or_unknown():
    known = PROGRAM.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"11"}}')
    assert hlo.parse(known).executions["body"] == 11
    carried = PROGRAM.replace("%limit = s32[] constant(6)", "%limit = s32[] get-tuple-element(%c), index=3")
    carried = carried.replace("tuple(%zero, %arg, %w)", "tuple(%zero, %arg, %w, %six)")
    carried = carried.replace("  %zero =", "  %six = s32[] constant(6)\n  %zero =")
    assert hlo.parse(carried).executions["body"] == 6
    unknown = hlo.parse(PROGRAM.replace("s32[] constant(6)", "s32[] negate(%n)"))
    assert unknown.unknown_loops == ("loop",)
    assert unknown.executions["body"] == 1


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("jit(step)/usually_7_times/while", 7),
        ("jit(step)/usually_0_times/while", 0),
        ("jit(step)/usually_7_times/while/body/while", None),
        ("jit(step)/while", None),
    ],
)
def test_the_program_says_how_often_a_loop_usually_runs(name, times):
    """Where data end it, and nobody knows; not of loops within it."""
    said = PROGRAM.replace("body=%body", f'body=%body, metadata={{op_name="{name}"}}')
    assert hlo.parse(said).executions["body"] == 6 and not hlo.parse(said).usual_loops
    module = hlo.parse(said.replace("s32[] constant(6)", "s32[] negate(%n)"))
    assert module.usual_loops == ({} if times is None else {"loop": times})
    assert module.unknown_loops == (("loop",) if times is None else ())
    assert module.executions["body"] == (1 if times is None else times)
    work = cost_time.timeline(module, network().topology.chip, []).cycles
    assert work == 300 * (1 if times is None else times) + 600


def test_usually_is_read_in_what_xla_compiles():
    def halve(x):
        with usually(3):
            return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x / 2, x)

    module = hlo.parse(jax.jit(halve).lower(jnp.ones((8, 8))).compile().as_text())
    assert list(module.usual_loops.values()) == [3] and not module.unknown_loops


def test_collectives_by_axis():
    rows = cost_network.by_kind_and_axis(cost_network.collectives(hlo.parse(PROGRAM), network()))
    assert [(r["kind"], r["axes"], r["group"], r["count"], r["bytes"]) for r in rows] == [
        ("all-gather", ["model"], 4, 6, 6 * 16 * 16 * 4),
        ("all-reduce", ["data"], 2, 1, 8 * 16 * 4),
    ]


def test_schedule_is_played_through():
    """6 x (gather + 300 cycles) + max(all-reduce, 500 cycles) + 100 cycles; the rest moves bytes."""
    module, net = hlo.parse(PROGRAM), network()
    chip = net.topology.chip
    played = cost_time.timeline(module, chip, cost_network.collectives(module, net))
    assert played.cycles == 6 * 300 + 500 + 100
    # 4 chips in a line that does not close: 3 hops; the 1024 bytes themselves are nothing beside them
    gather = 3 * cost_network.HOP_SECONDS
    reduce = 2 * 1 * cost_network.HOP_SECONDS
    unhidden = max(reduce - 500 / chip.clock, 0)
    assert played.waiting == pytest.approx(6 * gather + unhidden)
    # the loop's counter is a 4-byte add without an estimate: reads 8 bytes, writes 4
    counters = 6 * 12 / chip.hbm_bandwidth + 6 * 9 / chip.hbm_bandwidth
    assert played.seconds == pytest.approx(2400 / chip.clock + 6 * gather + unhidden + counters, rel=1e-3)
    assert played.operations[0].times == 6


def test_bytes_are_padded_to_tiles_and_on_chip_memory_is_free():
    (shape,) = hlo.parse_shapes("bf16[16,112,112,64]{0,3,2,1:T(8,128)(2,1)}")
    assert shape.bytes == 16 * 112 * 112 * 64 * 2
    assert shape.padded_bytes == 128 * 112 * 112 * 64 * 2  # the minor dimension, 16, fills 128 lanes
    first, second = hlo.parse_shapes("(f32[64]{0:T(128)S(1)}, s4[10]{0})")
    assert (first.space, first.padded_bytes, second.bytes) == (1, 512, 5)
    moved = PROGRAM.replace("%z = f32[8,16]{1,0:T(8,128)}", "%z = f32[8,16]{1,0:T(8,128)S(1)}")
    tile = 8 * 128 * 4
    multiply = hlo.parse(PROGRAM).computations["main"]["other"]
    for text, bytes_moved in ((PROGRAM, 3 * tile), (moved, tile)):
        module = hlo.parse(text)
        assert cost.instruction_bytes(multiply, module.computations["main"], module) == bytes_moved


def test_loops_that_data_end_have_no_trip_count():
    """A float that is held against a number, and a counter that something else may stop."""
    floats = PROGRAM.replace("%n = s32[]", "%n = f32[]").replace("%limit = s32[]", "%limit = f32[]")
    both = PROGRAM.replace("%less = pred[] compare(%n, %limit), direction=LT", "%less = pred[] and(%c2, %ok)")
    both = both.replace("  ROOT %less", "  %c2 = pred[] compare(%n, %limit), direction=LT\n  ROOT %less")
    for text in (floats, both):
        assert text != PROGRAM and hlo.parse(text).unknown_loops == ("loop",)


# As libtpu 0.0.42 writes them: a gather that goes on beside 1500 cycles of a product, in three fusions, and a
# reduce-scatter. What a shard_map makes shares channel 1.
SPREAD = """HloModule jit_step, is_scheduled=true

%start (a: f32[8,1024]) -> (f32[8,1024], f32[32,1024], u32[]) {
  %a = f32[8,1024]{1,0:T(8,128)} parameter(0)
  %gather.1 = f32[32,1024]{1,0:T(8,128)} all-gather(%a), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, \
frontend_attributes={chain_id="0"}, metadata={op_name="jit(step)/shard_map/all_gather"}
  ROOT %begun = (f32[8,1024]{1,0:T(8,128)}, f32[32,1024]{1,0:T(8,128)}, u32[]{:S(2)}) custom-call(%gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%beside (b: f32[8,1024], c: f32[32,1024], d: u32[], e: f32[32,1024]) -> (f32[32,1024], f32[32,1024]) {
  %b = f32[8,1024]{1,0:T(8,128)} parameter(0)
  %c = f32[32,1024]{1,0:T(8,128)} parameter(1)
  %d = u32[]{:S(2)} parameter(2)
  %e = f32[32,1024]{1,0:T(8,128)} parameter(3)
  %gather.2 = f32[32,1024]{1,0:T(8,128)} all-gather(%b), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, \
frontend_attributes={chain_id="0"}, metadata={op_name="jit(step)/shard_map/all_gather"}
  %work = f32[32,1024]{1,0:T(8,128)} multiply(%e, %e)
  ROOT %pair = (f32[32,1024]{1,0:T(8,128)}, f32[32,1024]{1,0:T(8,128)}) tuple(%work, %c)
}

%end (f: f32[8,1024], g: f32[32,1024], h: u32[]) -> f32[32,1024] {
  %f = f32[8,1024]{1,0:T(8,128)} parameter(0)
  %g = f32[32,1024]{1,0:T(8,128)} parameter(1)
  %h = u32[]{:S(2)} parameter(2)
  %gather.3 = f32[32,1024]{1,0:T(8,128)} all-gather(%f), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, \
frontend_attributes={chain_id="0"}, metadata={op_name="jit(step)/shard_map/all_gather"}
  ROOT %ended = f32[32,1024]{1,0:T(8,128)} custom-call(%g, %h), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter (i: f32[32,1024]) -> f32[8,1024] {
  %i = f32[32,1024]{1,0:T(8,128)} parameter(0)
  %reduced = f32[32,1024]{1,0:T(8,128)} all-reduce(%i), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %mine = s32[] constant(0)
  ROOT %part = f32[8,1024]{1,0:T(8,128)} dynamic-slice(%reduced, %mine, %mine), dynamic_slice_sizes={8,1024}
}

ENTRY %main (x: f32[8,1024], y: f32[32,1024]) -> f32[8,1024] {
  %x = f32[8,1024]{1,0:T(8,128)} parameter(0)
  %y = f32[32,1024]{1,0:T(8,128)} parameter(1)
  %s = (f32[8,1024]{1,0:T(8,128)}, f32[32,1024]{1,0:T(8,128)}, u32[]{:S(2)}) fusion(%x), kind=kCustom, \
output_to_operand_aliasing={{0}: (0, {})}, calls=%start
  %s0 = f32[8,1024]{1,0:T(8,128)} get-tuple-element(%s), index=0
  %s1 = f32[32,1024]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %s2 = u32[]{:S(2)} get-tuple-element(%s), index=2
  %both = (f32[32,1024]{1,0:T(8,128)}, f32[32,1024]{1,0:T(8,128)}) fusion(%s0, %s1, %s2, %y), kind=kOutput, \
output_to_operand_aliasing={{1}: (1, {})}, calls=%beside, backend_config={"window_config":{"estimated_cycles":"1500"}}
  %w = f32[32,1024]{1,0:T(8,128)} get-tuple-element(%both), index=0
  %w1 = f32[32,1024]{1,0:T(8,128)} get-tuple-element(%both), index=1
  %got = f32[32,1024]{1,0:T(8,128)} fusion(%s0, %w1, %s2), kind=kCustom, output_to_operand_aliasing={{}: (1, {})}, calls=%end
  %there = f32[32,1024]{1,0:T(8,128)} all-to-all(%got), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}
  %back = f32[32,1024]{1,0:T(8,128)} all-to-all(%there), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}
  ROOT %last = f32[8,1024]{1,0:T(8,128)} fusion(%back), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_rows_scattered_into_a_table_move_and_the_table_stays():
    """A fusion in a fusion, as TPUs have it: 8 of a million rows, each read, added to and written; and a gather."""
    text = """HloModule m
%inner (p: f32[1000000,128], q: s32[8], r: f32[8,128]) -> f32[1000000,128] {
  %p = f32[1000000,128]{1,0:T(8,128)} parameter(0)
  %q = s32[8]{0:T(128)} parameter(1)
  %r = f32[8,128]{1,0:T(8,128)} parameter(2)
  ROOT %sum = f32[1000000,128]{1,0:T(8,128)} scatter(%p, %q, %r), update_window_dims={1}
}
%outer (a: f32[1000000,128], b: s32[8], c: f32[8,128]) -> f32[1000000,128] {
  %a = f32[1000000,128]{1,0:T(8,128)} parameter(0)
  %b = s32[8]{0:T(128)} parameter(1)
  %c = f32[8,128]{1,0:T(8,128)} parameter(2)
  ROOT %f = f32[1000000,128]{1,0:T(8,128)} fusion(%a, %b, %c), kind=kCustom, calls=%inner
}
%look (d: f32[1000000,128], e: s32[8]) -> f32[8,128] {
  %d = f32[1000000,128]{1,0:T(8,128)} parameter(0)
  %e = s32[8]{0:T(128)} parameter(1)
  ROOT %g = f32[8,128]{1,0:T(8,128)} gather(%d, %e), offset_dims={1}, slice_sizes={1,128}
}
ENTRY %main (table: f32[1000000,128], ids: s32[8]) -> f32[1000000,128] {
  %table = f32[1000000,128]{1,0:T(8,128)} parameter(0)
  %ids = s32[8]{0:T(128)} parameter(1)
  %rows = f32[8,128]{1,0:T(8,128)} fusion(%table, %ids), kind=kCustom, calls=%look
  ROOT %new = f32[1000000,128]{1,0:T(8,128)} fusion(%table, %ids, %rows), kind=kCustom, calls=%outer
}
"""
    rows, ids = 8 * 128 * 4, 128 * 4
    assert cost.hlo_bytes(hlo.parse(text)) == (2 * rows + ids) + (3 * rows + ids)
    rounded = text.replace(
        "%rows = f32[8,128]{1,0:T(8,128)}", "%rows = bf16[8,128]{1,0:T(8,128)(2,1)}"
    ).replace("%g = f32[8,128]{1,0:T(8,128)}", "%g = bf16[8,128]{1,0:T(8,128)(2,1)}")
    module = hlo.parse(rounded)
    main = module.computations["main"]
    assert cost.instruction_bytes(main["rows"], main, module) == 1.5 * rows + ids


def test_of_what_is_sliced_the_slices_count_and_once_where_they_overlap():
    text = """HloModule m
%fused (p: f32[64,128]) -> f32[8,128] {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  %a = f32[8,128]{1,0:T(8,128)} slice(%p), slice={[0:8], [0:128]}
  %b = f32[8,128]{1,0:T(8,128)} slice(%p), slice={[8:16], [0:128]}
  ROOT %sum = f32[8,128]{1,0:T(8,128)} add(%a, %b)
}
ENTRY %main (x: f32[64,128]) -> f32[8,128] {
  %x = f32[64,128]{1,0:T(8,128)} parameter(0)
  ROOT %f = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused
}
"""
    assert cost.hlo_bytes(hlo.parse(text)) == 3 * 8 * 128 * 4
    image = text.replace("64,128", "9,128").replace("[8:16]", "[1:9]")
    assert cost.hlo_bytes(hlo.parse(image)) == (16 + 8) * 128 * 4  # nine rows lie in two tiles of eight


def test_collectives_that_share_a_channel_count_each_and_copies_of_one_once():
    module, net = hlo.parse(SPREAD), network()
    whole = 32 * 1024 * 4
    found = cost_network.collectives(module, net)
    rows = {(r["kind"], r["axes"][0]): (r["count"], r["bytes"]) for r in cost_network.by_kind_and_axis(found)}
    assert rows == {
        ("all-gather", "model"): (1, whole),
        ("all-to-all", "data"): (2, 2 * whole),
        ("reduce-scatter", "model"): (1, whole),
    }
    seconds = {c.kind: c.seconds for c in found}
    work = 1500 / net.topology.chip.clock
    assert seconds["all-gather"] > work > 0
    played = cost_time.timeline(module, net.topology.chip, found)
    expected = seconds["all-gather"] - work + 2 * seconds["all-to-all"] + seconds["reduce-scatter"]
    assert played.waiting == pytest.approx(expected)
    assert played.seconds == pytest.approx(expected + work, rel=1e-3)


def test_buffers_that_a_running_gather_holds_are_handed_on_and_not_moved():
    """The start writes what is gathered; the fusion beside it reads and writes its own arrays alone."""
    module = hlo.parse(SPREAD)
    main, whole = module.computations["main"], 32 * 1024 * 4
    moved = {name: cost.instruction_bytes(main[name], main, module) for name in ("s", "both", "got")}
    assert moved["s"] == whole
    assert moved["both"] == pytest.approx(2 * whole + whole / 4, rel=0.01)
    assert moved["got"] == pytest.approx(whole / 4, rel=0.01)


def test_scan_over_layers_reads_one_layer_at_a_time():
    text = """HloModule m
%fused (p0: f32[24,8,128], p1: s32[]) -> f32[8,128] {
  %p0 = f32[24,8,128]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[] parameter(1)
  %c = s32[] constant(0)
  ROOT %slice = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p0, %p1, %c, %c), dynamic_slice_sizes={1,8,128}
}
ENTRY %main (w: f32[24,8,128], i: s32[]) -> f32[8,128] {
  %w = f32[24,8,128]{2,1,0:T(8,128)} parameter(0)
  %i = s32[] parameter(1)
  ROOT %layer = f32[8,128]{1,0:T(8,128)} fusion(%w, %i), kind=kLoop, calls=%fused
}
"""
    assert cost.hlo_bytes(hlo.parse(text)) == 2 * 8 * 128 * 4 + 4


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, use_global_device_ids=true", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4,'c'=1] {'a','c'}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0},{2,3},{3,2}}", [[0, 1], [2, 3]]),
        ("channel_id=3", [[0, 1, 2, 3]]),
    ],
)
def test_replica_groups(text, groups):
    instruction = hlo.Instruction("x", "all-reduce", (), (), ", " + text, "")
    assert replica_groups(instruction, 4) == groups


def test_unknown_replica_groups_are_refused():
    with pytest.raises(ValueError, match="replica groups"):
        replica_groups(hlo.Instruction("x", "all-reduce", (), (), ", replica_groups=<0,1>", ""), 4)


@given(
    size=st.integers(1, 7),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    low=st.integers(0, 3),
    high=st.integers(0, 3),
    hole=st.integers(1, 3),
    gap=st.integers(1, 2),
)
@settings(max_examples=60, deadline=None)
def test_convolution_counts_products_but_no_holes(size, kernel, stride, low, high, hole, gap):
    """By brute force over all taps: those that fall between two inputs of a transposed convolution are none."""
    length = (size - 1) * hole + 1 + low + high
    if length < (kernel - 1) * gap + 1:
        return
    x, w = jnp.zeros((2, 3, size)), jnp.zeros((5, 3, kernel))

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (stride,), [(low, high)], (hole,), (gap,))

    out = jax.eval_shape(convolve, x, w).shape[-1]
    taps = [o * stride + k * gap - low for o, k in itertools.product(range(out), range(kernel))]
    pairs = min(sum(t % hole == 0 for t in taps), size * kernel, size * out)
    expected = 2 * 2 * 5 * 3 * pairs
    assert cost.jaxpr_flops(jax.make_jaxpr(convolve)(x, w)).total == expected
    if hole == gap == 1:
        assert pairs == min(out * kernel, size * kernel, size * out)


def _layers(x, w):
    def layer(x, w):
        return jnp.tanh(x @ w), None

    return jnp.sum(jax.lax.scan(layer, x, w)[0])


X, W = jnp.zeros((4, 8)), jnp.zeros((5, 8, 8))
FORWARD = 5 * 2 * 4 * 8 * 8


def test_shard_map_in_the_jaxpr_counts_on_every_device():
    line = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    product = jax.shard_map(jnp.dot, mesh=line, in_specs=(split, whole), out_specs=split)
    counted = cost.jaxpr_flops(jax.make_jaxpr(product)(jnp.zeros((16, 4)), jnp.zeros((4, 3))))
    assert counted.total == 2 * 16 * 4 * 3


def test_scan_and_gradient_in_the_jaxpr():
    assert cost.jaxpr_flops(jax.make_jaxpr(_layers)(X, W)).total == FORWARD
    both = jax.make_jaxpr(jax.grad(_layers, (0, 1)))(X, W)
    assert cost.jaxpr_flops(both) == cost.JaxprFlops(3 * FORWARD, 0)


@pytest.mark.parametrize(("policy", "repeated"), [(None, 2), (jax.checkpoint_policies.dots_saveable, 0)])
def test_rematerialisation_is_shown(policy, repeated):
    """Both products are made again, or none where the policy keeps them; inside a scan too."""
    product = 2 * 4 * 8 * 8

    def loss(x, w):
        return jnp.sum(jax.checkpoint(lambda x, w: jnp.tanh(jnp.tanh(x @ w) @ w), policy=policy)(x, w))

    counted = cost.jaxpr_flops(jax.make_jaxpr(jax.grad(loss, (0, 1)))(X, W[0]))
    assert counted == cost.JaxprFlops((6 + repeated) * product, repeated * product)

    def layers(x, w):
        return jnp.sum(
            jax.lax.scan(lambda x, w: (jax.checkpoint(loss, policy=policy)(x, w) + x, None), x, w)[0]
        )

    counted = cost.jaxpr_flops(jax.make_jaxpr(jax.grad(layers, (0, 1)))(X, W))
    assert counted == cost.JaxprFlops(5 * (6 + repeated) * product, 5 * repeated * product)


def test_compiled_count_agrees_with_the_jaxpr():
    """The CPU's compiler writes the same language; its loops are multiplied too."""
    text = jax.jit(jax.grad(_layers, (0, 1))).lower(X, W).compile().as_text()
    assert cost.hlo_flops(hlo.parse(text)) == 3 * FORWARD


@pytest.mark.parametrize(
    "chip", [chip for chip in CHIPS if chip.platform == "tpu"], ids=lambda chip: chip.name
)
def test_clock_and_matrix_units_make_up_the_peak(chip):
    """Units per device: v2 1, v3 2, v4 and v5p 8 (two cores), v5e 4; of 128 x 128, since v6e of 256 x 256."""
    units = {"v2": 1, "v3": 2, "v4": 8, "v5e": 4, "v5p": 8, "v6e": 4, "tpu7x": 4}[chip.name]
    side = 256 if chip.name in ("v6e", "tpu7x") else 128
    assert chip.bf16 == pytest.approx(2 * side * side * units * chip.clock, rel=0.01)
    assert chip.source and chip.links in (4, 6) and chip.hbm_bytes >= 8 * 2**30


@pytest.mark.parametrize("devices", [2, 4])
def test_ring_all_reduce_takes_two_passes(devices):
    """A large all-reduce over a line of v5e chips, by hand: 2 (n-1)/n bytes over one link of 50 GB/s."""
    net = network()
    group = [0, 4] if devices == 2 else [0, 1, 2, 3]
    seconds = net.seconds("all-reduce", 1e9, group)
    assert seconds == pytest.approx(2 * (devices - 1) / devices * 1e9 / 50e9)
    assert net.seconds("all-gather", 1e9, group) == pytest.approx(seconds / 2)
    assert net.seconds("all-reduce", 1e9, [3]) == 0.0
    assert net.spanned(group) == (("data",) if devices == 2 else ("model",))


def busiest_link(shape, rings, sent):
    """Bytes over the busiest link, if each chip of a torus sends the same to every one, one axis after the other.

    Along an axis the shorter way; where both are as long, half each way.
    """
    loads, share = collections.Counter(), sent / math.prod(shape)
    for start, end in itertools.product(itertools.product(*map(range, shape)), repeat=2):
        here = list(start)
        for axis, (size, ring) in enumerate(zip(shape, rings, strict=True)):
            there, far = here[axis], end[axis] - here[axis]
            ways = {1: far % size, -1: -far % size} if ring else {1 if far > 0 else -1: abs(far)}
            shortest = [way for way, steps in ways.items() if steps == min(ways.values())]
            for way in shortest:
                for step in range(ways[way]):
                    here[axis] = (there + way * step) % size
                    loads[*here, axis, way] += share / len(shortest)
            here[axis] = end[axis]
    return max(loads.values())


@pytest.mark.parametrize(
    ("where", "shape", "rings"),
    [("v5e:4x4", (4, 4), (0, 0)), ("v5e:4x8", (4, 8), (0, 0)), ("v5p:4x4x8", (4, 4, 8), (1, 1, 1))],
)
def test_an_all_to_all_takes_what_the_busiest_link_takes(where, shape, rings):
    where, sent = topology.parse(where), 1e9
    places = list(itertools.product(*map(range, shape)))
    devices = np.array([Device(i, (*p, 0)[:3]) for i, p in enumerate(places)])
    mesh = type("M", (), {"shape": {"data": len(devices)}, "devices": devices})
    seconds = cost_network.Network(where, mesh).seconds("all-to-all", sent, range(len(devices)))
    assert seconds == pytest.approx(busiest_link(shape, rings, sent) / where.chip.link_bandwidth)


def test_an_all_to_all_between_nodes_leaves_each_by_its_own_adapter():
    where = topology.parse("h100:2x8")
    mesh = type(
        "M", (), {"shape": {"data": 16}, "devices": np.array([Device(i, (i, 0, 0)) for i in range(16)])}
    )
    seconds = cost_network.Network(where, mesh).seconds("all-to-all", 1e9, range(16))
    chip = where.chip
    assert seconds == pytest.approx(1e9 * (7 / 16 / chip.link_bandwidth + 1 / 2 / chip.node_bandwidth))


def test_torus_that_closes_is_used_both_ways():
    where = topology.parse("v5e:16x16")
    places = list(itertools.product(range(16), range(16)))
    mesh = type(
        "M",
        (),
        {"shape": {"data": 256}, "devices": np.array([Device(i, (*p, 0)) for i, p in enumerate(places)])},
    )
    seconds = cost_network.Network(where, mesh).seconds("all-reduce", 1e9, range(256))
    assert seconds == pytest.approx(2 * 255 / 256 * 1e9 / (4 * 50e9))
    assert math.isclose(cost_network.Network(where, mesh).seconds("all-reduce", 4, range(256)), 2 * 16 * 1e-6)
