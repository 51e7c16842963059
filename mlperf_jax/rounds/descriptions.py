"""What a system is: entry.json of v0.5, systems/<system>.json from v0.6 on, and our own."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.regular import open_regular
from mlperf_jax.rounds.objects import flat_texts, text

CATEGORIES = ("cloud", "on premise", "preview", "research")
UNKNOWN = "unknown"
_MOST_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class System:
    """A system as its submitter describes it.

    Attributes:
        submitter, name: for people.
        division: closed, open or "unknown".
        category: one of `CATEGORIES`, or "unknown".
        processor, processors: model and number of CPUs (sockets) in all nodes.
        accelerator, accelerators: model and number of accelerator chips in all nodes; "" and 0 without.
        software: framework and version.
        power, cloud_scale: as given, mostly "".
        fields: everything that was given, flat.
    """

    submitter: str = ""
    name: str = ""
    division: str = UNKNOWN
    category: str = UNKNOWN
    nodes: int = 0
    processor: str = ""
    processors: int = 0
    accelerator: str = ""
    accelerators: int = 0
    software: str = ""
    power: str = ""
    cloud_scale: str = ""
    fields: tuple[tuple[str, str], ...] = ()

    @property
    def chips(self) -> str:
        """What computes, and how many of it: "8 x Tesla V100", else the CPUs."""
        if self.accelerators:
            return f"{self.accelerators} × {self.accelerator or 'accelerator'}"
        return f"{self.processors} × {self.processor} (CPU)" if self.processors else self.processor


def read_system(path: Path) -> System:
    """Reads a description of either kind.

    Raises:
        UserError: it cannot be read or is no JSON object.
    """
    try:
        with open_regular(path) as file:
            raw = json.loads(file.read(_MOST_BYTES), strict=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged (not JSON: {error}).") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} is damaged (no JSON object).")
    return _entry(raw) if isinstance(raw.get("nodes"), list) else _description(raw)


def category_of(status: Any) -> str:
    """The category that a status such as "Available cloud", "onprem" or "RDI" means."""
    said = str(status).lower().replace("-", "").replace("_", "").replace(" ", "")
    if "cloud" in said:
        return "cloud"
    if "prem" in said:
        return "on premise"
    if "preview" in said:
        return "preview"
    return "research" if re.search(r"research|rdi|rdo|r&d", said) else UNKNOWN


def division_of(said: Any) -> str:
    division = str(said).strip().lower()
    return division if division in ("closed", "open") else UNKNOWN


def _description(raw: dict[str, Any]) -> System:
    nodes = _count(raw.get("number_of_nodes"))
    nodes_or_one = nodes or 1
    return dataclasses.replace(
        _either(raw),
        submitter=text(raw.get("submitter")),
        name=text(raw.get("system_name")),
        nodes=nodes,
        processor=text(raw.get("host_processor_model_name")),
        processors=nodes_or_one * _count(raw.get("host_processors_per_node")),
        accelerator=text(raw.get("accelerator_model_name")),
        accelerators=nodes_or_one * _count(raw.get("accelerators_per_node")),
    )


def _entry(raw: dict[str, Any]) -> System:
    """v0.5: a list of kinds of nodes."""
    kinds = [kind for kind in raw["nodes"] if isinstance(kind, dict)]
    main = max(kinds, key=lambda kind: _count(kind.get("num_accelerators")), default={})
    accelerator = text(main.get("accelerator"))
    processor = text(main.get("cpu"))
    hardware = text(raw.get("hardware"))
    sockets = re.match(r"(\d{1,3})\s*x\s+", processor)
    per_node = sockets or re.search(r"\b(\d{1,3})x\s", hardware)
    counts = [_count(kind.get("num_nodes")) or 1 for kind in kinds]
    accelerators = sum(
        n * _count(kind.get("num_accelerators")) for n, kind in zip(counts, kinds, strict=True)
    )
    # A TPU of v0.5 is named after all its cores, "tpuv2-512", two of which make a chip.
    if tpu := re.fullmatch(r"tpu(v\d)-(\d{1,6})", accelerator):
        accelerator, accelerators = f"TPU {tpu[1]}", int(tpu[2]) // 2
    return dataclasses.replace(
        _either(raw),
        name=hardware,
        nodes=sum(counts),
        processor=processor[sockets.end() :] if sockets else processor,
        processors=sum(counts) * (int(per_node[1]) if per_node else 1),
        accelerator=accelerator,
        accelerators=accelerators if accelerator else 0,
    )


def _either(raw: dict[str, Any]) -> System:
    """What both kinds say alike."""
    return System(
        division=division_of(raw.get("division")),
        category=category_of(raw.get("status")),
        software=text(raw.get("framework")),
        power=text(raw.get("power")),
        cloud_scale=text(raw.get("cloud_scale")),
        fields=flat_texts(raw),
    )


def _count(said: Any) -> int:
    """The first whole number in what was given, at most what a system can have."""
    digits = re.search(r"\d{1,7}", str(said)) if isinstance(said, (int, float, str)) else None
    return int(digits[0]) if digits else 0
