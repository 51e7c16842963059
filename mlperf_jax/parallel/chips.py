"""What is known of accelerators, as data: the peaks that figures are held against.

Sources, per row in `source`: Google Cloud documentation, "TPU architecture", one page per version
(docs.cloud.google.com/tpu/docs/<version>); Jouppi et al., "A domain-specific supercomputer for
training deep neural networks", CACM 63(7), 2020 (v2, v3); Jouppi et al., "TPU v4", ISCA 2023
(arXiv:2304.01433, table 4: clocks and links of v3 and v4); NVIDIA's data sheets, dense figures
without sparsity. Where no clock is published it is the one at which the chip's matrix units give
its peak: peak / (2 n^2 units), n = 128 before v6e and 256 since. A TPU v2, v3 or v7x chip shows as
two jax devices; compute and memory here are per jax device, links per chip.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures per jax device, but for the links.

    Attributes:
        name: as in `--topology=NAME:SHAPE`.
        kinds: what `device.device_kind` may begin with, in lower case.
        bf16: peak dense bf16 FLOP/s.
        hbm_bytes: memory.
        hbm_bandwidth: bytes/s.
        source: where the figures come from.
        int8: peak dense int8 operations/s; 0 where the hardware has no faster path for them.
        clock: Hz of the matrix units.
        devices: how many jax devices a chip shows as.
        links: TPU: ports to neighbours per chip (2 per axis of the torus); GPU: 1, all of NVLink.
        link_bandwidth: bytes/s of one link in one direction.
        node_bandwidth: bytes/s per chip in one direction between TPU slices or GPU nodes; 0 unknown.
        wraps: TPU: an axis of so many chips, or a multiple of it for 3D tori, closes to a ring.
        scoped_vmem_kib: TPU: on-chip memory that one operation may take for its blocks; 0 leaves the compiler's default.
        target_config: GPU: properties that the compiler asks for.
    """

    name: str
    kinds: tuple[str, ...]
    bf16: float
    hbm_bytes: float
    hbm_bandwidth: float
    source: str = ""
    int8: float = 0.0
    clock: float = 0.0
    devices: int = 1
    links: int = 0
    link_bandwidth: float = 0.0
    node_bandwidth: float = 0.0
    wraps: int = 0
    scoped_vmem_kib: int = 0
    target_config: str = ""

    @property
    def torus_axes(self) -> int:
        """Axes of a TPU's torus; 0 for anything else."""
        return self.links // 2 if self.platform == "tpu" else 0

    @property
    def platform(self) -> str:
        """tpu, gpu or cpu."""
        first = self.kinds[0].split()[0]
        return {"nvidia": "gpu", "cpu": "cpu"}.get(first, "tpu")


def _gpu(
    name: str,
    description: str,
    *,
    bf16: float,
    int8: float,
    clock: float,
    boost_ghz: float,
    hbm_bytes: float,
    hbm_bandwidth: float,
    link_bandwidth: float,
    source: str,
    capability: tuple[int, int],
    cores: int,
    l2: int,
    shared: int = 233472,
    node_bandwidth: float = 50e9,
) -> Chip:
    """A GPU, with the text proto from which XLA's CUDA compiler learns of one that is not there.

    Args as the attributes of `Chip`, and what CUDA tells of the device: its description, its clock in GHz,
    compute capability, count of cores, bytes of the L2 cache and of a core's shared memory.
    """
    major, minor = capability
    target_config = (
        "gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 "
        f"shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: "
        f"{64 if major == 8 else 128} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 "
        f"block_dim_limit_z: 65535 memory_bandwidth: {hbm_bandwidth:.0f} l2_cache_size: {l2} "
        f"clock_rate_ghz: {boost_ghz} device_memory_size: {hbm_bytes:.0f} "
        f"shared_memory_per_block_optin: {shared - 1024} "
        f"cuda_compute_capability {{ major: {major} minor: {minor} }} registers_per_core_limit: 65536 "
        'registers_per_block_limit: 65536 } platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } '
        f'runtime_version {{ major: 13 }} device_description_str: "{description}"'
    )
    return Chip(
        name,
        (f"nvidia {name}",),
        bf16,
        hbm_bytes,
        hbm_bandwidth,
        source=source,
        int8=int8,
        clock=clock,
        links=1,
        link_bandwidth=link_bandwidth,
        node_bandwidth=node_bandwidth,
        target_config=target_config,
    )


_H100_SOURCE = (
    "NVIDIA H100 data sheet (SXM5); NVLink 900 GB/s both ways, one 400 Gbit/s port per GPU (DGX H100)"
)

CHIPS = (
    Chip(
        "v2",
        ("tpu v2",),
        23e12,
        8 * 2**30,
        350e9,
        source="Cloud TPU docs, v2; CACM 63(7): 700 MHz, 4 links of 496 Gbit/s",
        clock=0.7e9,
        devices=2,
        links=4,
        link_bandwidth=62e9,
        wraps=16,
    ),
    Chip(
        "v3",
        ("tpu v3",),
        61.5e12,
        16 * 2**30,
        450e9,
        source="Cloud TPU docs, v3; arXiv:2304.01433: 940 MHz, 4 links of 70 GB/s",
        clock=0.94e9,
        devices=2,
        links=4,
        link_bandwidth=70e9,
        wraps=32,
    ),
    Chip(
        "v4",
        ("tpu v4",),
        275e12,
        32 * 2**30,
        1228e9,
        source="Cloud TPU docs, v4; arXiv:2304.01433: 1050 MHz, 6 links of 50 GB/s",
        int8=275e12,
        clock=1.05e9,
        links=6,
        link_bandwidth=50e9,
        wraps=4,
    ),
    Chip(
        "v5e",
        ("tpu v5 lite", "tpu v5e"),
        197e12,
        16 * 2**30,
        819e9,
        source="Cloud TPU docs, v5e: ICI 400 GB/s both ways over 4 ports; clock from the peak",
        int8=393e12,
        clock=1.5e9,
        links=4,
        link_bandwidth=50e9,
        wraps=16,
        node_bandwidth=3.125e9,
    ),
    Chip(
        "v5p",
        ("tpu v5p", "tpu v5"),
        459e12,
        95 * 2**30,
        2765e9,
        source="Cloud TPU docs, v5p: ICI 1200 GB/s both ways over 6 ports; clock from the peak",
        int8=918e12,
        clock=1.75e9,
        links=6,
        link_bandwidth=100e9,
        wraps=4,
        node_bandwidth=6.25e9,
        scoped_vmem_kib=24_576,  # benchmarks/NOTES.md, "Compiler flags"
    ),
    Chip(
        "v6e",
        ("tpu v6 lite", "tpu v6e"),
        918e12,
        32 * 2**30,
        1638e9,
        source="Cloud TPU docs, v6e: ICI 800 GB/s both ways over 4 ports; clock from the peak",
        int8=1836e12,
        clock=1.75e9,
        links=4,
        link_bandwidth=100e9,
        wraps=16,
        node_bandwidth=12.5e9,
        scoped_vmem_kib=98_304,  # of 128 MiB; as MaxText has it (benchmarks/xla_flags_library.py)
    ),
    Chip(
        "tpu7x",
        ("tpu7x", "tpu v7"),
        1153.5e12,
        96 * 2**30,
        3690e9,
        source="Cloud TPU docs, TPU7x: ICI 1200 GB/s both ways over 6 ports; fp8 is its fast path",
        clock=2.2e9,
        devices=2,
        links=6,
        link_bandwidth=100e9,
        wraps=4,
        node_bandwidth=12.5e9,
    ),
    _gpu(
        "a100",
        "NVIDIA A100-SXM4-80GB",
        bf16=312e12,
        int8=624e12,
        clock=1.41e9,
        boost_ghz=1.41,
        hbm_bytes=80 * 2**30,
        hbm_bandwidth=2039e9,
        link_bandwidth=300e9,
        node_bandwidth=25e9,
        source="NVIDIA A100 80GB data sheet (SXM4); NVLink 600 GB/s both ways; a 200 Gbit/s port each (DGX)",
        capability=(8, 0),
        cores=108,
        shared=167936,
        l2=41943040,
    ),
    _gpu(
        "h100",
        "NVIDIA H100 80GB HBM3",
        bf16=989e12,
        int8=1979e12,
        clock=1.83e9,
        boost_ghz=1.98,
        hbm_bytes=80 * 2**30,
        hbm_bandwidth=3350e9,
        link_bandwidth=450e9,
        source=_H100_SOURCE,
        capability=(9, 0),
        cores=132,
        l2=52428800,
    ),
    _gpu(
        "h200",
        "NVIDIA H200",
        bf16=989e12,
        int8=1979e12,
        clock=1.83e9,
        boost_ghz=1.98,
        hbm_bytes=141e9,
        hbm_bandwidth=4800e9,
        link_bandwidth=450e9,
        source=_H100_SOURCE.replace("H100 data sheet", "H200 data sheet"),
        capability=(9, 0),
        cores=132,
        l2=62914560,
    ),
    _gpu(
        "b200",
        "NVIDIA B200",
        bf16=2250e12,
        int8=4500e12,
        clock=1.965e9,
        boost_ghz=1.965,
        hbm_bytes=180e9,
        hbm_bandwidth=8000e9,
        link_bandwidth=900e9,
        source="NVIDIA DGX B200 data sheet; NVLink 1.8 TB/s both ways, one 400 Gbit/s port per GPU",
        capability=(10, 0),
        cores=148,
        l2=132644864,
    ),
)


def find_chip(device_kind: str) -> Chip | None:
    """The chip that calls itself `device_kind`, None if it is not in the table (CPUs are not)."""
    kind = device_kind.lower()
    # The longest prefix decides: "tpu v5 lite" is no "tpu v5".
    found = [(len(k), chip) for chip in CHIPS for k in chip.kinds if kind.startswith(k)]
    return max(found, key=lambda pair: pair[0])[1] if found else None
