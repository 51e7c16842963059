"""Writes constraints.txt: what the set in setup.cfg resolves to on each supported Python.

    pip install uv && python .ci/constraints.py

PyTorch is only a judge in tests (extra `parity`) and is pinned by hand: its own pins of NVIDIA's
libraries would otherwise decide those of the `cuda` extra.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
BY_HAND = ("torch==2.13.0",)


def resolve(python: str) -> dict[str, str]:
    """Returns package -> version for Linux x86-64 with all extras but `parity`."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--upgrade", "--python-version", python, "--python-platform", "x86_64-manylinux_2_31"]
    command += ["--extra=tpu", "--extra=cuda", "--extra=serve", "--extra=test", "setup.cfg"]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    pins = (line.split("==") for line in out.splitlines() if "==" in line)
    return {name: version.split("+")[0].strip() for name, version in pins}


def merge(resolved: dict[str, dict[str, str]]) -> list[str]:
    """Merges resolutions per Python into lines, with a marker wherever they differ."""
    lines = []
    for name in sorted(set().union(*resolved.values())):
        versions = {python: pins[name] for python, pins in resolved.items() if name in pins}
        if len(versions) == len(resolved) and len(set(versions.values())) == 1:
            lines.append(f"{name}=={versions[PYTHONS[0]]}")
        else:
            lines += [f'{name}=={v} ; python_version == "{python}"' for python, v in versions.items()]
    return lines


def main() -> None:
    lines = merge({python: resolve(python) for python in PYTHONS})
    header = "# What setup.cfg resolves to; made by .ci/constraints.py, not edited by hand."
    (ROOT / "constraints.txt").write_text("\n".join([header, *lines, *BY_HAND]) + "\n")


if __name__ == "__main__":
    main()
