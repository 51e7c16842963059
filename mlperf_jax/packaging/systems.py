"""systems/<system>.json of a package, from the one that runs keep beside their results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlperf_jax.packaging.package import Package
from mlperf_jax.results.system import NOT_STATED
from mlperf_jax.rounds.descriptions import category_of
from mlperf_jax.rounds.objects import read_object

_MAY_BE_EMPTY = ("hw_notes", "sw_notes")
# Inference's words for the categories of `descriptions.category_of`.
_INFERENCE_STATUS = {"research": "rdi", "on premise": "available", "cloud": "available", "preview": "preview"}


def write_system(
    package: Package,
    target: str,
    source: Path,
    *,
    org: str,
    division: str,
    wanted: Sequence[str],
    inference: bool = False,
) -> None:
    """Writes a description with the package's own division and submitter; the rest stays as people left it.

    Args:
        target: its place in the package.
        source: RESULTS/systems/<system>.json.
        wanted: fields that it must have.
        inference: whether it is for a submission of inference, which words its status otherwise.
    """
    told = read_object(source)
    if not told:
        package.lacks(target, f"{source} is missing or damaged; a run on the system writes it")
        return
    told.pop("schema_version", None)
    told |= {"submitter": org, "division": division}
    if inference:
        told["status"] = _INFERENCE_STATUS.get(category_of(told.get("status")), told.get("status"))
        if isinstance(stack := told.get("other_software_stack"), dict):
            told["other_software_stack"] = ", ".join(f"{name} {version}" for name, version in stack.items())
    bare = str(told.get("accelerators_per_node")) == "0"
    unstated = [
        field
        for field in wanted
        if told.get(field, NOT_STATED) in (NOT_STATED, "")
        and field not in _MAY_BE_EMPTY
        and not (bare and field.startswith("accelerator_"))
    ]
    if unstated:
        package.lacks(f"{target}: {', '.join(unstated)}", f"state it in {source} and pack again")
    package.write_json(target, told, source=source)
