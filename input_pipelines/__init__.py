"""Data sets by name: each is prepared once on disk, then opened as a `base.Dataset`.

A data set's module is imported when it is asked for, and provides:
    prepare(data_dir, *, fake, verify) -> str
    open_dataset(data_dir, options) -> Dataset
    open_synthetic(options) -> Dataset, random data of its shapes.
    FAKE_BYTES, the least that an example of its made-up set takes on disk, where it has such a set.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from input_pipelines.base import Dataset
from mlperf_jax.errors import UserError

_MODULES = {
    "c4": "input_pipelines.text.c4",
    "coco": "input_pipelines.image.coco",
    "coco_keypoints": "input_pipelines.image.coco_keypoints",
    "coco_masks": "input_pipelines.image.coco_masks",
    "colin27": "input_pipelines.volumes.colin27",
    "composites": "input_pipelines.image.composites",
    "composites_masks": "input_pipelines.image.composites_masks",
    "criteo": "input_pipelines.clicks.criteo",
    "criteo_multihot": "input_pipelines.clicks.criteo_multihot",
    "debian_descriptions": "input_pipelines.text.debian_descriptions",
    "figures": "input_pipelines.image.figures",
    "fashion_mnist": "input_pipelines.image.fashion_mnist",
    "gov_report": "input_pipelines.text.gov_report",
    "imagenet": "input_pipelines.image.imagenet",
    "kits19": "input_pipelines.volumes.kits19",
    "imdb": "input_pipelines.text.imdb",
    "librispeech": "input_pipelines.sound.librispeech",
    "libreoffice_help": "input_pipelines.text.libreoffice_help",
    "linux_doc": "input_pipelines.text.linux_doc",
    "movie_snippets": "input_pipelines.text.movie_snippets",
    "newsgroups": "input_pipelines.text.newsgroups",
    "movielens_100k": "input_pipelines.ratings.movielens_100k",
    "movielens_20m": "input_pipelines.ratings.movielens_20m",
    "nycflights": "input_pipelines.clicks.nycflights",
    "objectron": "input_pipelines.image.objectron",
    "openimages": "input_pipelines.image.openimages",
    "spoken_sentences": "input_pipelines.sound.spoken_sentences",
    "squad": "input_pipelines.text.squad",
    "wikipedia": "input_pipelines.text.wikipedia",
    "wordnet_questions": "input_pipelines.text.wordnet_questions",
    "wmt": "input_pipelines.text.wmt",
    "wmt16": "input_pipelines.text.wmt16",
}


def default_data_dir() -> Path:
    """Returns $MLPERF_JAX_DATA, or else ~/.cache/mlperf_jax."""
    return Path(os.environ.get("MLPERF_JAX_DATA") or "~/.cache/mlperf_jax").expanduser()


def prepare(name: str, data_dir: Path, *, fake: int = 0, verify: bool = False) -> str:
    """Prepares a data set under `data_dir`; at once where that was done before.

    Args:
        name: of the data set.
        data_dir: holds all data sets.
        fake: if not 0, write a made-up set of this many train images instead of the real one.
        verify: compare every byte that is there already, not only sizes and counts.

    Returns:
        One phrase saying what lies where.

    Raises:
        UserError: the data cannot be had, is damaged, or the disk is full, or too small for so many made-up ones.
    """
    module = _module(name)
    _require_space(Path(data_dir), fake, getattr(module, "FAKE_BYTES", 0))
    return module.prepare(Path(data_dir), fake=fake, verify=verify)


def _require_space(data_dir: Path, fake: int, each: int) -> None:
    """Refuses before the first file what no disk here could hold."""
    there = next((path for path in (data_dir, *data_dir.absolute().parents) if path.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free
    if fake * each > free:
        raise UserError(
            f"--fake={fake} would take at least {fake * each / 1e9:,.0f} GB and {there} has {free / 1e9:,.0f} GB free; "
            f"give at most --fake={free // each}, or another --data_dir."
        )


def open_dataset(name: str, data_dir: Path, options: Mapping[str, Any]) -> Dataset:
    """Opens a prepared data set; reads no examples yet.

    Args:
        name: of the data set.
        data_dir: holds all data sets.
        options: the `data` part of a config. Known to every data set: `synthetic` (bool), random
            data of the same shapes without any files, with `num_train` and `num_eval` examples
            where they are given; `fake` (int), the made-up set of that many train images. The
            rest is told by the data set's module.

    Raises:
        UserError: there is no such data set, it is not prepared, or it is damaged.
    """
    module = _module(name)
    if options.get("synthetic"):
        return module.open_synthetic(options)
    return module.open_dataset(Path(data_dir), options)


def _module(name: str) -> ModuleType:
    if name not in _MODULES:
        raise UserError(f"There is no data set {name!r}; there are {', '.join(_MODULES)}.")
    return importlib.import_module(_MODULES[name])
