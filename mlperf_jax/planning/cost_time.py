"""How long a compiled program takes: its schedule, played through with the compiler's own estimates.

The TPU compiler writes an estimate in cycles at most operations. Those over the clock, in the order
of the schedule, with collectives and prefetches running beside where the schedule lets them, are a
better prediction than a roofline. An operation without an estimate, as all on GPUs, takes what its
own FLOPs and bytes need at the chip's peaks; a Pallas kernel what `cost_kernels` counts in it.
"""

from __future__ import annotations

import dataclasses

from mlperf_jax.parallel.chips import Chip
from mlperf_jax.planning import cost, cost_kernels
from mlperf_jax.planning.cost_network import Collective, collective_kind
from mlperf_jax.planning.hlo import Computation, Instruction, Module

GPU_LAUNCH_SECONDS = 2e-6
"""Between two kernels of a stream: an assumption of ours."""


@dataclasses.dataclass
class Operation:
    """What one operation costs in a step.

    Attributes:
        name: the instruction's.
        opcode: its kind.
        source: where in the user's program it comes from.
        seconds: all its runs together.
        times: how often it runs.
        estimated: whether the time is the compiler's estimate.
    """

    name: str
    opcode: str
    source: str
    seconds: float
    times: int
    estimated: bool


@dataclasses.dataclass(frozen=True)
class Timeline:
    """A step, played through.

    Attributes:
        seconds: the whole.
        compute: of it, operations.
        waiting: of it, waiting for collectives that nothing hides.
        cycles: the compiler's estimates, summed; 0 where there are none.
        operations: all of them, the dearest first.
    """

    seconds: float
    compute: float
    waiting: float
    cycles: int
    operations: list[Operation]


class _Player:
    def __init__(
        self,
        module: Module,
        chip: Chip,
        collectives: list[Collective],
        kernels: dict[cost_kernels.Key, cost_kernels.Kernel],
    ) -> None:
        self.module = module
        self.kernels = kernels
        self.chip = chip
        self.network = {name: c for c in collectives for name in (c.name, *c.copies)}
        self.operations: dict[str, Operation] = {}
        self.compute = self.waiting = 0.0
        self.cycles = 0

    def play(self, name: str, times: int) -> float:
        """Plays one run of a computation that runs `times` times in a step; returns its length in seconds."""
        now = network_free = memory_free = 0.0
        finished: dict[str, float] = {}
        computation = self.module.computations[name]
        for instruction in computation.values():
            collective, part = self._collective(instruction)
            if collective is not None:
                if part != "done":
                    begin = max(now, network_free)
                    network_free = finished[instruction.name] = finished[collective.name] = (
                        begin + collective.seconds
                    )
                if part != "start":
                    now = self._wait(now, finished.get(collective.name, now), times, instruction)
            elif instruction.opcode in ("copy-start", "slice-start"):
                length = (
                    cost.instruction_bytes(instruction, computation, self.module) / self.chip.hbm_bandwidth
                )
                memory_free = finished[instruction.name] = max(now, memory_free) + length
            elif instruction.opcode.endswith(("-done", "-update")) and instruction.operands:
                end = finished.get(instruction.operands[0], now)
                finished[instruction.name] = end
                if instruction.opcode.endswith("-done"):
                    now = self._wait(now, end, times, instruction)
            elif instruction.opcode in ("while", "conditional", "call"):
                now += self._nested(instruction, computation, times)
            else:
                now += self._operation(instruction, computation, times)
        return now

    def _collective(self, instruction: Instruction) -> tuple[Collective | None, str]:
        """The collective that an instruction is, starts or ends, also inside a call or a fusion; and which."""
        if collective_kind(instruction):
            part = "start" if instruction.opcode.endswith("-start") else "whole"
            return self.network.get(instruction.name), part
        if instruction.opcode == "async-start" or "kind=kCustom" in instruction.attributes:
            inner = [i for called in instruction.called for i in self.module.computations[called].values()]
            found = next((self.network[i.name] for i in inner if i.name in self.network), None)
            marks = " ".join(i.attributes for i in inner if i.opcode == "custom-call")
            if instruction.opcode == "async-start" or "AsyncCollectiveStart" in marks:
                return found, "start"
            return found, "done" if "AsyncCollectiveDone" in marks else "whole"
        return None, ""

    def _wait(self, now: float, end: float, times: int, instruction: Instruction) -> float:
        waited = max(end - now, 0.0)
        self.waiting += waited * times
        if waited:
            self._note(instruction, waited * times, times, estimated=False)
        return now + waited

    def _nested(self, instruction: Instruction, computation: Computation, times: int) -> float:
        trips = 1
        if instruction.opcode == "while":
            trips = self.module.counted_trips(instruction, computation)
        lengths = [self.play(called, times * trips) for called in instruction.called]
        if instruction.opcode == "conditional":
            return max(lengths, default=0.0)
        return trips * sum(lengths)

    def _operation(self, instruction: Instruction, computation: Computation, times: int) -> float:
        cycles = instruction.cycles
        if cycles is not None and self.chip.platform == "tpu":
            self.cycles += cycles * times
            length = cycles / self.chip.clock
        else:
            moved = cost.instruction_bytes(instruction, computation, self.module)
            flops = self._flops(instruction, computation)
            length = max(flops / self.chip.bf16, moved / self.chip.hbm_bandwidth)
            if kernel := cost_kernels.of_instruction(instruction, self.kernels):
                length = max(kernel.seconds(self.chip), moved / self.chip.hbm_bandwidth)
            if length and self.chip.platform == "gpu":
                length += GPU_LAUNCH_SECONDS
        if length:
            self.compute += length * times
            self._note(instruction, length * times, times, estimated=cycles is not None)
        return length

    def _flops(self, instruction: Instruction, computation: Computation) -> int:
        inner = sum(
            self._flops(i, self.module.computations[called])
            for called in instruction.called
            for i in self.module.computations[called].values()
        )
        return inner + cost.instruction_flops(instruction, computation)

    def _note(self, instruction: Instruction, seconds: float, times: int, *, estimated: bool) -> None:
        name = instruction.name
        operation = Operation(name, instruction.opcode, instruction.op_name, 0.0, times, estimated)
        self.operations.setdefault(name, operation).seconds += seconds


def timeline(
    module: Module,
    chip: Chip,
    collectives: list[Collective],
    kernels: dict[cost_kernels.Key, cost_kernels.Kernel] | None = None,
) -> Timeline:
    """Plays one run of a program through.

    Args:
        module: the compiled program of one device.
        chip: what it runs on.
        collectives: the module's, with their times.
        kernels: the Pallas kernels that it calls, as `cost_kernels.kernels` counts them.
    """
    player = _Player(module, chip, collectives, kernels or {})
    seconds = player.play(module.entry, 1)
    dearest = sorted(player.operations.values(), key=lambda o: -o.seconds)
    return Timeline(seconds, player.compute, player.waiting, player.cycles, dearest)
