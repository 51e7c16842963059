"""Loops whose length the data decide, and how often they usually run: `plan` reads it in the compiled program."""

from __future__ import annotations

import contextlib
import re

import jax

_SAID = re.compile(r"\busually_(\d+)_times/while$")


def usually(times: int) -> contextlib.AbstractContextManager[None]:
    """What `lax.while_loop` or `fori_loop` is called in, to say that its body usually runs so often."""
    return jax.named_scope(f"usually_{times}_times")


def usual_times(op_name: str) -> int | None:
    """What `usually` said of a loop, by the name that jax gave the operation; None where nothing was said."""
    said = _SAID.search(op_name)
    return int(said.group(1)) if said else None
