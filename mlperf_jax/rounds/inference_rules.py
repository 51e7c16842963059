"""What MLPerf Inference v6.1 asks of each benchmark and each submission.

Facts of mlcommons/inference: tools/submission/submission_checker/constants.py and compliance/. Official
seeds also of the rounds before, and the benchmarks that v6.1 has no more, so that published trees are judged
by their own. How good results must be is in `inference_limits`.
"""

from __future__ import annotations

import dataclasses

from loadgen_py.official_defaults import DEFAULTS
from mlperf_jax.rounds.inference_limits import ACCURACY, Limit

VERSION = "v6.1"
MIN_DURATION_MS = 600_000
MAX_ACCURACY_LOG = 10_240  # bytes; longer ones are cut to the first and last `VIEWABLE`
VIEWABLE = 4096
SEEDS = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")
_V61 = tuple(int(DEFAULTS["*"]["*"][name]) for name in SEEDS)
SEEDS_OF = {
    "v5.1": (1780908523862526354, 14771362308971278857, 18209322760996052031),
    "v6.0": (2465351861681999779, 14276810075590677512, 3936089224930324775),
    VERSION: _V61,
}
DIVISIONS = ("closed", "open", "network")
SYSTEM_TYPES = ("datacenter", "edge", "datacenter,edge", "edge,datacenter")
STATUSES = ("available", "preview", "rdi")
MEASUREMENTS = (
    "input_data_types",
    "retraining",
    "starting_weights_filename",
    "weight_data_types",
    "weight_transformations",
)
# systems/<system>.json: fields that may not be empty.
SYSTEM_MEANINGFUL = (
    "division",
    "submitter",
    "system_type",
    "status",
    "system_name",
    "number_of_nodes",
    "host_processor_model_name",
    "host_processors_per_node",
    "host_processor_core_count",
    "host_memory_capacity",
    "host_memory_configuration",
    "host_storage_capacity",
    "host_storage_type",
    "host_networking",
    "host_network_card_count",
    "host_networking_topology",
    "accelerators_per_node",
    "accelerator_model_name",
    "accelerator_memory_capacity",
    "accelerator_host_interconnect",
    "accelerator_memory_configuration",
    "accelerator_interconnect",
    "cooling",
    "framework",
    "operating_system",
    "other_software_stack",
)
_SYSTEM_MORE = (
    "host_processor_frequency",
    "host_processor_caches",
    "host_processor_interconnect",
    "accelerator_frequency",
    "accelerator_interconnect_topology",
    "accelerator_on-chip_memories",
    "hw_notes",
    "sw_notes",
    "system_type_detail",
)
SYSTEM_COUNTS = ("number_of_nodes", "accelerators_per_node")
SYSTEM_FIELDS = (*SYSTEM_MEANINGFUL, *_SYSTEM_MORE)


@dataclasses.dataclass(frozen=True)
class Model:
    """One benchmark.

    Attributes:
        name: the checker's, "resnet".
        samples: of the data set, all of which an accuracy run answers.
        loaded: least samples in memory while performance is measured.
        edge, datacenter: scenarios that a closed submission of such a system needs; None: not of such systems.
        tests: compliance tests of closed.
        offline_samples: least samples of Offline's query in closed.
        server_ns: Server's bound, in ns; 0 where tokens are judged, or nothing.
        last: the last round that has it.
    """

    name: str
    samples: int
    loaded: int
    edge: tuple[str, ...] | None = None
    datacenter: tuple[str, ...] | None = None
    tests: tuple[str, ...] = ()
    offline_samples: int = 0
    server_ns: int = 0
    last: str = VERSION

    @property
    def limits(self) -> tuple[Limit, ...]:
        """What accuracy.txt must say in closed, the main figure first."""
        return ACCURACY[self.name]

    @property
    def metric(self) -> str:
        """The main figure, as accuracy.txt has it."""
        return self.limits[0].name

    def in_scenario(self, scenario: str) -> Model:
        """The benchmark as it is in a scenario: some have an Interactive of their own."""
        return MODELS.get(f"{self.name}-interactive", self) if scenario == "Interactive" else self

    def scenarios(self, system_type: str) -> tuple[str, ...] | None:
        """What a closed submission must have; None where the benchmark is not for such systems."""
        wanted = [self.edge] if system_type == "edge" else [self.datacenter]
        if "," in system_type:
            wanted = [self.edge, self.datacenter]
            if self.name == "resnet":
                wanted.append(("Server",))
        found = [name for names in wanted if names for name in names]
        return tuple(dict.fromkeys(found)) if found else None


_STREAM = ("SingleStream", "Offline")
_ALL_EDGE = ("SingleStream", "MultiStream", "Offline")
_OFFLINE = ("Offline",)
_DATACENTER = ("Server", "Offline")
_T01 = ("TEST01",)
_T06 = ("TEST06",)
_S = 1_000_000_000

_MODELS = (
    Model("resnet", 50_000, 1024, _ALL_EDGE, None, ("TEST01", "TEST04"), 24_576, 15_000_000),
    Model("bert-99", 10_833, 10_833, _STREAM, None, _T01, 10_833),
    Model("bert-99.9", 10_833, 10_833, _STREAM, None, _T01, 10_833),
    Model("3d-unet-99", 43, 43, _STREAM, _OFFLINE, _T01, 43),
    Model("3d-unet-99.9", 43, 43, _STREAM, _OFFLINE, _T01, 43),
    Model("llama3.1-8b", 13_368, 13_368, None, _OFFLINE, _T06, 13_368, 20 * _S),
    Model("llama3.1-8b-edge", 5000, 5000, _STREAM, None, (), 5000),
    Model("llama2-70b-99.9", 24_576, 24_576, None, _OFFLINE, _T06, 24_576, 20 * _S),
    Model("stable-diffusion-xl", 5000, 5000, _STREAM, None, ("TEST01", "TEST04"), 5000, 20 * _S),
    Model("rgat", 788_379, 788_379, None, _OFFLINE, _T01, 788_379),
    Model("deepseek-r1", 4388, 4388, None, _OFFLINE, _T06, 4388, 60 * _S),
    Model("whisper", 1633, 1633, _OFFLINE, _OFFLINE, _T01, 1633),
    Model("gpt-oss-120b", 4395, 6396, None, _OFFLINE, ("TEST07", "TEST09"), 6396, 60 * _S),
    Model("wan-2.2-t2v-a14b", 248, 50, None, ("Offline", "SingleStream"), ("TEST04",), 50),
    Model("qwen3-vl-235b-a22b", 48_289, 48_289, None, _OFFLINE, (), 48_289, 12 * _S),
    Model("qwen3-vl-235b-a22b-interactive", 8000, 48_289, None, _OFFLINE, (), 48_289, 1_500_000_000),
    Model("qwen3.6-27b", 995, 995, ("SingleStream",), None),
    Model("dlrm-v3", 349_823, 349_823, None, _DATACENTER, ("TEST08",), 349_823, 60 * _S),
    Model("yolo-95", 1525, 64, _ALL_EDGE, None, _T01, 1525),
    Model("yolo-99", 1525, 64, _ALL_EDGE, None, _T01, 1525),
    Model("e2e-rag-qna", 824, 824, None, _OFFLINE, ("TEST09",), 824),
    Model("e2e-rag-db", 2515, 2515, None, _OFFLINE, (), 2515),
    # Of earlier rounds, as their last one has them.
    Model("retinanet", 24_781, 64, None, None, _T01, 24_576, 100_000_000, "v6.0"),
    Model("llama2-70b-99", 24_576, 24_576, None, _OFFLINE, _T06, 24_576, 20 * _S, "v6.0"),
    Model("mixtral-8x7b", 15_000, 15_000, None, _DATACENTER, _T06, 15_000, 20 * _S, "v6.0"),
    Model("llama3.1-405b", 8313, 8313, None, _OFFLINE, _T06, 8313, 60 * _S, "v6.0"),
    Model("pointpainting", 39_987, 1024, ("SingleStream",), None, ("TEST01", "TEST04"), 6636, 0, "v6.0"),
    Model("dlrm-v2-99", 330_067, 204_800, None, _DATACENTER, _T01, 24_576, 60_000_000, "v5.1"),
    Model("dlrm-v2-99.9", 330_067, 204_800, None, _DATACENTER, _T01, 24_576, 60_000_000, "v5.1"),
    Model("gptj-99", 13_368, 13_368, _STREAM, _DATACENTER, _T06, 0, 20 * _S, "v5.0"),
    Model("gptj-99.9", 13_368, 13_368, _STREAM, _DATACENTER, _T06, 0, 20 * _S, "v5.0"),
    Model("llama2-70b-interactive-99", 24_576, 24_576, None, _DATACENTER, _T06, 24_576, 20 * _S, "v5.0"),
    Model("llama2-70b-interactive-99.9", 24_576, 24_576, None, _DATACENTER, _T06, 24_576, 20 * _S, "v5.0"),
)
MODELS = {model.name: model for model in _MODELS}
_OTHER_NAMES = {
    "resnet50": "resnet",
    "mobilenet": "resnet",
    "ssd-resnet34": "retinanet",
    "llama3_1-8b": "llama3.1-8b",
    "llama3_1-8b-edge": "llama3.1-8b-edge",
    "llama3_1-405b": "llama3.1-405b",
    "llama2-70b": "llama2-70b-99.9",
}
# The results of runs of one benchmark in the order that people read them.
SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline", "Interactive")


def find_model(name: str, round_name: str = VERSION) -> Model | None:
    """The benchmark that a folder of results is called after; None if there is none in that round."""
    found = MODELS.get(_OTHER_NAMES.get(name, name))
    return found if found and found.last >= round_name else None
