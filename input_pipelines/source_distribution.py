"""Files of PyPI's source distributions, read from the index itself: pip would run their setup.py to see what they need."""

from __future__ import annotations

import gzip
import html
import http.client
import io
import re
import subprocess
import sys
import urllib.parse
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path

from input_pipelines.fetch import Source, SourceError, tar_members

_SECONDS = 30
_MOST_BYTES = 2**28  # of an archive, packed or not


def pypi_sdist(requirement: str, inside: str) -> Source:
    """Files of a source distribution, from whatever index pip is set up for (PEP 503).

    Args:
        requirement: name and version, such as "x==1.2".
        inside: the folder of the files in it, such as "data".
    """
    name, _, version = requirement.partition("==")
    stem = f"{name}-{version}"

    def read(names: Sequence[str], scratch: Path) -> dict[str, bytes]:
        page = f"{_index_url()}/{re.sub('[-_.]+', '-', name).lower()}/"
        links = re.findall(r'<a [^>]*href="([^"#]+)', _download(page).decode("utf-8", "replace"))
        link = next((link for link in links if link.rpartition("/")[2] == f"{stem}.tar.gz"), None)
        if link is None:
            raise SourceError(f"{page} has no {stem}.tar.gz")
        archive = _unpacked(_download(urllib.parse.urljoin(page, html.unescape(link))))
        return tar_members(archive, {f"{stem}/{inside}/{name}": name for name in names})

    return Source(f"PyPI source distribution {requirement}", read)


def _index_url() -> str:
    """The index that pip is told to use: by the environment, its configuration, or else PyPI."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        listed = ""
    told = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
    keys = (":env:.index-url", "install.index-url", "global.index-url")
    found = next((told[key].strip("'\"") for key in keys if key in told), "https://pypi.org/simple")
    return found.rstrip("/")


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as response:
            data = response.read(_MOST_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise SourceError(f"the download of {url} failed ({error})") from None
    if len(data) > _MOST_BYTES:
        raise SourceError(f"{url} is larger than {_MOST_BYTES:,} bytes")
    return data


def _unpacked(archive: bytes) -> bytes:
    try:
        with gzip.open(io.BytesIO(archive)) as stream:
            return stream.read(_MOST_BYTES)  # what is longer is no whole tar then
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"its archive is damaged ({error})") from None
