"""Pickled tables: equal to what pandas reads, and nothing else is read or run."""

import contextlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipelines.clicks import pickled_frame

pandas = pytest.importorskip("pandas")

COLUMNS = st.sampled_from(
    [
        ("f8", st.floats(width=64)),
        ("f4", st.floats(width=32)),
        ("i8", st.integers(-(2**63), 2**63 - 1)),
        ("i2", st.integers(-(2**15), 2**15 - 1)),
        ("bool", st.booleans()),
        (
            "O",
            st.one_of(st.text(max_size=5), st.sampled_from(["AA", "UA"]), st.just(float("nan")), st.none()),
        ),
    ]
)


def old_frame(columns):
    """A table whose texts are objects, as they were before pandas 3."""
    with pandas.option_context("future.infer_string", False):
        return pandas.DataFrame(columns)


@st.composite
def frames(draw):
    num_rows = draw(st.integers(1, 8))
    names = draw(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=6, unique=True))
    columns = {}
    for name in names:
        dtype, values = draw(COLUMNS)
        values = draw(st.lists(values, min_size=num_rows, max_size=num_rows))
        columns[name] = np.array(values + [None], object)[:-1] if dtype == "O" else np.array(values, dtype)
    return old_frame(columns)


@given(frames())
@settings(max_examples=20, deadline=None)
def test_columns_equal_those_of_pandas(frame):
    columns = pickled_frame.read(pickle.dumps(frame, protocol=5))
    assert list(columns) == list(frame)
    for name, values in columns.items():
        assert values.dtype == frame[name].dtype
        assert repr(values.tolist()) == repr(frame[name].tolist())


class Harm:
    def __reduce__(self):
        return exec, ("raise SystemExit('this ran')",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle at all",
        pickle.dumps({"a": 1}),
        pickle.dumps(Harm()),
        pickle.dumps(old_frame({"a": [1, 2]}))[:-30],
        pickle.dumps(old_frame({"a": [Harm()]})),
        pickle.dumps(old_frame({"a": pandas.to_datetime(["2013-01-01"])})),
        pickle.dumps(old_frame({0: [1, 2]})),
    ],
    ids=["empty", "bytes", "dict", "call", "cut", "object", "dates", "unnamed"],
)
def test_anything_else_is_refused_in_one_line(content):
    with pytest.raises(pickled_frame.Refused) as caught:
        pickled_frame.read(content)
    assert "\n" not in str(caught.value)


@given(frames(), st.data())
@settings(max_examples=20, deadline=None)
def test_damage_is_refused_or_harmless(frame, data):
    content = bytearray(pickle.dumps(frame, protocol=5))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(pickled_frame.Refused):
        pickled_frame.read(bytes(content))
