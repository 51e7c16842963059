"""What is known of accelerators, as data: the peaks that figures are held against.

Sources: Google Cloud documentation, "TPU system architecture" (one page per version), for TPUs;
NVIDIA's data sheets, dense figures without sparsity, for GPUs. A TPU v2, v3 or v7x chip shows as
two jax devices, so figures here are per jax device.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Per jax device.

    Attributes:
        kinds: what `device.device_kind` may begin with, in lower case.
        bf16: peak dense bf16 FLOP/s.
        hbm_bytes: memory.
        hbm_bandwidth: bytes/s.
    """

    name: str
    kinds: tuple[str, ...]
    bf16: float
    hbm_bytes: float
    hbm_bandwidth: float


CHIPS = (
    Chip("v2", ("tpu v2",), 23e12, 8 * 2**30, 350e9),
    Chip("v3", ("tpu v3",), 61.5e12, 16 * 2**30, 450e9),
    Chip("v4", ("tpu v4",), 275e12, 32 * 2**30, 1228e9),
    Chip("v5e", ("tpu v5 lite", "tpu v5e"), 197e12, 16 * 2**30, 819e9),
    Chip("v5p", ("tpu v5p", "tpu v5"), 459e12, 95 * 2**30, 2765e9),
    Chip("v6e", ("tpu v6 lite", "tpu v6e"), 918e12, 32 * 2**30, 1640e9),
    Chip("tpu7x", ("tpu7x", "tpu v7"), 1153.5e12, 96 * 2**30, 3690e9),
    Chip("a100", ("nvidia a100",), 312e12, 80 * 2**30, 2039e9),
    Chip("h100", ("nvidia h100",), 989e12, 80 * 2**30, 3350e9),
    Chip("h200", ("nvidia h200",), 989e12, 141e9, 4800e9),
    Chip("b200", ("nvidia b200",), 2250e12, 180e9, 8000e9),
)


def find_chip(device_kind: str) -> Chip | None:
    """The chip that calls itself `device_kind`, None if it is not in the table (CPUs are not)."""
    kind = device_kind.lower()
    # The longest prefix decides: "tpu v5 lite" is no "tpu v5".
    found = [(len(k), chip) for chip in CHIPS for k in chip.kinds if kind.startswith(k)]
    return max(found, key=lambda pair: pair[0])[1] if found else None
