"""A package while it is built: files that come from runs, and the list of what is missing.

Nothing of a run is changed on the way. What a submission needs and no run holds is listed, never made up;
the tree then holds an INCOMPLETE.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.judging.accuracy_log import digest
from mlperf_jax.judging.findings import Finding, one_line

SCHEMA_VERSION = 1
DIVISIONS = ("closed", "open")
_SOURCES = ("mlperf_jax", "models", "configs", "input_pipelines", "loadgen_py")
_BESIDE = (
    "README.md",
    "LICENSE",
    "pyproject.toml",
    "setup.cfg",
    "constraints.txt",
    "Dockerfile",
    "run_and_time.sh",
)
_SUFFIXES = {".py", ".sh", ".css", ".js", ".toml"}


@dataclasses.dataclass(frozen=True)
class Missing:
    """Something that a submission needs and the runs do not have. what: where it belongs; mend: how to come by it."""

    what: str
    mend: str


class Package:
    """The tree that is being built, with its manifest.

    Attributes:
        root: where it stands until it is whole.
        missing: what it lacks.
        notes: what its maker should know, and no submission needs.
    """

    def __init__(self, root: Path, results_dir: Path, *, kind: str, org: str, division: str) -> None:
        self.root = root
        self._results_dir = results_dir
        self.missing: list[Missing] = []
        self.notes: list[str] = []
        self._facts = {"kind": kind, "org": org, "division": division}
        self._files: dict[str, str] = {}

    def lacks(self, what: str, mend: str) -> None:
        missing = Missing(what, mend)
        if missing not in self.missing:
            self.missing.append(missing)

    def copy(self, source: Path, target: str) -> None:
        """A file of a run, byte for byte.

        Raises:
            UserError: it is a link or cannot be read.
        """
        if source.is_symlink():
            raise UserError(
                f"{source} is a link, and only files of their own are packed; put the file there."
            )
        path = self._place(target, source)
        try:
            shutil.copyfile(source, path, follow_symlinks=False)
        except OSError as error:
            raise UserError(
                f"{source} cannot be packed ({error.strerror}); mend that and pack again."
            ) from None

    def write(self, target: str, text: str | bytes, *, source: Path | str) -> None:
        """A file made of what runs say. source: where that stands, or in words."""
        data = text.encode() if isinstance(text, str) else text
        self._place(target, source).write_bytes(data)

    def write_json(self, target: str, told: Mapping[str, Any], *, source: Path | str) -> None:
        self.write(target, json.dumps(told, indent=2) + "\n", source=source)

    def copy_sources(self, target: str) -> None:
        """The code of this project, as it is installed."""
        top = Path(__file__).resolve().parents[2]
        files = [path for name in _SOURCES for path in sorted((top / name).rglob("*"))]
        files += [
            path for name in _BESIDE if (path := top / name).is_file() and (top / "setup.cfg").is_file()
        ]
        for path in files:
            inside = path.relative_to(top)
            if (
                path.is_file()
                and (path.suffix in _SUFFIXES or path.name in _BESIDE)
                and "__pycache__" not in inside.parts
            ):
                self.copy(path, f"{target}/{inside}")
                self._files[f"{target}/{inside}"] = "source code"

    def finish(self) -> None:
        """Writes the manifest, and INCOMPLETE.md where something is missing."""
        if self.missing:
            lines = [f"- {missing.what}: {missing.mend}" for missing in self.missing]
            head = "This package is INCOMPLETE and cannot be submitted. It lacks:\n\n"
            self.write("INCOMPLETE.md", head + "\n".join(lines) + "\n", source="mlperf_jax.package")
        files = {
            name: {"sha256": digest(self.root / name), "from": source}
            for name, source in sorted(self._files.items())
        }
        told = {
            "schema_version": SCHEMA_VERSION,
            **self._facts,
            "complete": not self.missing,
            "missing": [dataclasses.asdict(missing) for missing in self.missing],
            "notes": self.notes,
            "files": files,
        }
        (self.root / "package.json").write_text(json.dumps(told, indent=2) + "\n")

    def _place(self, target: str, source: Path | str) -> Path:
        path = self.root / target
        if target in self._files or path.exists():
            raise UserError(f"Two files want to be {target} in the package; name systems and runs apart.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Path):
            inside = source.is_relative_to(self._results_dir)
            source = str(source.relative_to(self._results_dir)) if inside else source.name
        self._files[target] = source
        return path


@contextlib.contextmanager
def building(out: Path, results_dir: Path, *, kind: str, org: str, division: str) -> Iterator[Package]:
    """Builds beside `out` and moves there when all is well; nothing is overwritten, nothing half done stays.

    Raises:
        UserError: `out` exists, or cannot be written.
    """
    if os.path.lexists(out):
        raise UserError(f"{out} exists and is not overwritten; move it away or give another --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        root = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise UserError(f"{out.parent} cannot be written ({error.strerror}); give another --out.") from None
    try:
        package = Package(root, results_dir, kind=kind, org=org, division=division)
        yield package
        package.finish()
        root.chmod(0o755)
        if os.path.lexists(out):
            raise UserError(f"{out} has come to exist meanwhile; move it away or give another --out.")
        os.rename(root, out)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise


def tell_findings(package: Package, findings: list[Finding]) -> None:
    """What judging the built tree finds is missing in it."""
    for finding in findings:
        try:
            place = str(finding.path.relative_to(package.root))
        except ValueError:
            place = finding.path.name
        if any(missing.what.startswith(place) for missing in package.missing):
            continue  # told already, in words that say where it comes from
        line = "" if finding.line is None else f":{finding.line}"
        text = f"{place}{line} [{finding.rule}] {one_line(finding.text)}"
        if finding.severity == "error":
            package.lacks(text.rstrip("."), finding.mend)
        else:
            package.notes.append(text)
