"""Speech synthesis by eSpeak NG, as the PyPI package `espeakng-loader` holds it; GPL-3, of which the sound is free.

The package is fetched and unpacked, never installed: `fetch_voices` puts its library and its English voices into a
folder, and `Speaker` loads them from there. Of each platform the library is pinned, and the voices are the same.
"""

from __future__ import annotations

import ctypes
import dataclasses
import platform
import sys
from pathlib import Path

import numpy as np

from input_pipelines import fetch
from mlperf_jax.errors import UserError

_PACKAGE, _INSIDE = "espeakng-loader==0.2.4", "espeakng_loader"
_LIBRARIES = {
    ("linux", "x86_64"): fetch.PinnedFile(
        "libespeak-ng.so",
        661_568,
        "b15ce0803b26254e8a0d088c6b9281a2637b2b02613147cc320cfdefaf2c3ccf",
        "none",
    ),
    ("linux", "aarch64"): fetch.PinnedFile(
        "libespeak-ng.so",
        605_456,
        "fe3022609ec80d5f740e046ceb8a0039225fd3de177d99f918858059095b8729",
        "none",
    ),
    ("darwin", "arm64"): fetch.PinnedFile(
        "libespeak-ng.dylib",
        504_168,
        "bb635eee1ee9c456f4a5cf06fb6cb352ecdd4d61e1951743b423ef22bb57f470",
        "none",
    ),
}
_VOICES = fetch.PinnedTree(
    (
        *(
            f"espeak-ng-data/{name}"
            for name in ("phondata", "phonindex", "phontab", "intonations", "en_dict")
        ),
        "espeak-ng-data/lang/gmw/en*",
        "espeak-ng-data/voices/!v/*",
    ),
    118,
    "9d55a684e0887e40ac4a068a2c475e223a6df37cff39f140b5c51f1180969081",
)

# Of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _UTF8 = 2, 1
_RATE, _PITCH = 1, 3

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def fetch_voices(data_dir: Path, scratch: Path, folder: Path) -> None:
    """Puts library and voices into `folder`.

    Args:
        data_dir: its `manual/espeakng-loader` is looked into first.
        scratch: for temporary files.
        folder: an empty one.

    Raises:
        UserError: they could not be had from any source, or there is no library for this machine.
    """
    machine = sys.platform, platform.machine()
    if machine not in _LIBRARIES:
        known = ", ".join("-".join(pair) for pair in _LIBRARIES)
        raise UserError(
            f"{_PACKAGE} has no library for {'-'.join(machine)} but for {known}; prepare the data there."
        )
    library, manual = _LIBRARIES[machine], data_dir / "manual" / "espeakng-loader"
    by_hand = f"{library.name} and espeak-ng-data of the PyPI package {_PACKAGE} into {manual}"
    files = fetch.fetch(
        "eSpeak NG",
        [library],
        [fetch.folder(manual), fetch.pypi_package(_PACKAGE, _INSIDE)],
        _made(scratch / "library"),
        by_hand=by_hand,
    ) | fetch.fetch_tree(
        "eSpeak NG's voices",
        _VOICES,
        [fetch.folder_tree(manual), fetch.pypi_tree(_PACKAGE, _INSIDE)],
        _made(scratch / "voices"),
        by_hand=by_hand,
    )
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@dataclasses.dataclass(frozen=True)
class Manner:
    """How something is said.

    Attributes:
        voice: an accent's name, as "en-us".
        variant: of it, as "f1".
        rate: words a minute.
        pitch: 0 to 100.
    """

    voice: str
    variant: str
    rate: int = 175
    pitch: int = 50


class Speaker:
    """Says sentences. The library has one state, so there is one speaker in a process at a time.

    Args:
        folder: as `fetch_voices` filled it.

    Attributes:
        sample_rate: of what it says, per second.

    Raises:
        UserError: the library does not load.
    """

    def __init__(self, folder: Path) -> None:
        (path,) = folder.glob("libespeak-ng.*")
        try:
            self._library = ctypes.CDLL(str(path.resolve()))
        except OSError as error:
            raise UserError(f"eSpeak NG does not load on this machine ({error}).") from None
        self.sample_rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, str(folder).encode(), 0)
        if self.sample_rate <= 0:
            raise UserError(f"eSpeak NG does not find its voices in {folder}.")
        self._parts: list[np.ndarray] = []
        self._callback = _CALLBACK(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _: object) -> int:
        if samples and count > 0:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, manner: Manner) -> np.ndarray:
        """What a sentence sounds like, [S] int16.

        Raises:
            ValueError: there is no such voice.
        """
        name = f"{manner.voice}+{manner.variant}"
        if self._library.espeak_SetVoiceByName(name.encode()):
            raise ValueError(f"eSpeak NG has no voice {name}")
        self._library.espeak_SetParameter(_RATE, manner.rate, 0)
        self._library.espeak_SetParameter(_PITCH, manner.pitch, 0)
        said = text.encode() + b"\0"
        self._parts.clear()
        self._library.espeak_Synth(said, ctypes.c_size_t(len(said)), 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.int16)
