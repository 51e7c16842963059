"""What MLPerf Inference v6.1 asks of each benchmark and each submission.

Facts of mlcommons/inference: tools/submission/submission_checker/constants.py and compliance/. Official
seeds also of the rounds before, so that published trees are judged by their own.
"""

from __future__ import annotations

import dataclasses

from loadgen_py.official_defaults import DEFAULTS

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
        targets: (name of the metric in accuracy.txt, least value), in closed.
        edge, datacenter: scenarios that a closed submission of such a system needs; None: not of such systems.
        tests: compliance tests of closed.
        offline_samples: least samples of Offline's query in closed.
        server_ns: Server's bound, in ns; 0 where tokens are judged, or nothing.
    """

    name: str
    samples: int
    loaded: int
    targets: tuple[tuple[str, float], ...]
    edge: tuple[str, ...] | None = None
    datacenter: tuple[str, ...] | None = None
    tests: tuple[str, ...] = ()
    offline_samples: int = 0
    server_ns: int = 0

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
_T01 = ("TEST01",)
_S = 1_000_000_000

_MODELS = (
    Model(
        "resnet",
        50_000,
        1024,
        (("accuracy", 75.6954),),
        _ALL_EDGE,
        None,
        ("TEST01", "TEST04"),
        24_576,
        15_000_000,
    ),
    Model("bert-99", 10_833, 10_833, (("f1", 89.96526),), _STREAM, None, _T01, 10_833),
    Model("bert-99.9", 10_833, 10_833, (("f1", 90.783126),), _STREAM, None, _T01, 10_833),
    Model("3d-unet-99", 43, 43, (("mean", 0.853083),), _STREAM, _OFFLINE, _T01, 43),
    Model("3d-unet-99.9", 43, 43, (("mean", 0.8608383),), _STREAM, _OFFLINE, _T01, 43),
    Model(
        "llama3.1-8b",
        13_368,
        13_368,
        (("rouge1", 38.391408), ("rouge2", 15.748425), ("rougeL", 24.250743)),
        None,
        _OFFLINE,
        ("TEST06",),
        13_368,
        20 * _S,
    ),
    Model(
        "llama3.1-8b-edge",
        5000,
        5000,
        (("rouge1", 38.6694), ("rouge2", 15.953553), ("rougeL", 24.391125)),
        _STREAM,
        None,
        (),
        5000,
    ),
    Model(
        "llama2-70b-99.9",
        24_576,
        24_576,
        (("rouge1", 44.3867688), ("rouge2", 22.0131648), ("rougeL", 28.5875838)),
        None,
        _OFFLINE,
        ("TEST06",),
        24_576,
        20 * _S,
    ),
    Model(
        "stable-diffusion-xl",
        5000,
        5000,
        (("CLIP_SCORE", 31.68631873), ("FID_SCORE", 23.01085758)),
        _STREAM,
        None,
        ("TEST01", "TEST04"),
        5000,
        20 * _S,
    ),
    Model("rgat", 788_379, 788_379, (("accuracy", 0.721314),), None, _OFFLINE, _T01, 788_379),
    Model(
        "deepseek-r1", 4388, 4388, (("exact_match", 80.544618),), None, _OFFLINE, ("TEST06",), 4388, 60 * _S
    ),
    Model("whisper", 1633, 1633, (("accuracy", 96.953571),), _OFFLINE, _OFFLINE, _T01, 1633),
    Model(
        "gpt-oss-120b",
        4395,
        6396,
        (("exact_match", 82.2987),),
        None,
        _OFFLINE,
        ("TEST07", "TEST09"),
        6396,
        60 * _S,
    ),
    Model(
        "wan-2.2-t2v-a14b",
        248,
        50,
        (("vbench_score", 69.7752),),
        None,
        ("Offline", "SingleStream"),
        ("TEST04",),
        50,
    ),
    Model(
        "qwen3-vl-235b-a22b",
        48_289,
        48_289,
        (("f1", 0.782397),),
        None,
        _OFFLINE,
        (),
        48_289,
        12 * _S,
    ),
    Model("qwen3.6-27b", 995, 995, (("mAP", 85.3677),), ("SingleStream",), None),
    Model(
        "dlrm-v3",
        349_823,
        349_823,
        (("lifetime_gauc/rating", 0.78584337),),
        None,
        ("Server", "Offline"),
        ("TEST08",),
        349_823,
        60 * _S,
    ),
    Model("yolo-95", 1525, 64, (("mAP", 50.73),), _ALL_EDGE, None, _T01, 1525),
    Model("yolo-99", 1525, 64, (("mAP", 52.866),), _ALL_EDGE, None, _T01, 1525),
    Model("e2e-rag-qna", 824, 824, (("accuracy", 33.95),), None, _OFFLINE, ("TEST09",), 824),
    Model("e2e-rag-db", 2515, 2515, (("accuracy", 98.0),), None, _OFFLINE, (), 2515),
)
MODELS = {model.name: model for model in _MODELS}
_OTHER_NAMES = {"resnet50": "resnet", "mobilenet": "resnet", "llama3_1-8b": "llama3.1-8b"}
# The results of runs of one benchmark in the order that people read them.
SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline", "Interactive")


def find_model(name: str) -> Model | None:
    """The v6.1 benchmark that a folder of results is called after; None if there is none."""
    return MODELS.get(_OTHER_NAMES.get(name, name))
