"""Enumerations, settings and callbacks take and refuse what those of the official package do."""

from __future__ import annotations

import copy
import decimal
import fractions
import json
import operator
import pathlib
import pickle

import numpy as np
import pytest
import systems

import loadgen_py as lg
from mlperf_jax.errors import UserError

ENUMERATIONS = ("TestScenario", "TestMode", "LoggingMode")


@pytest.fixture(scope="module")
def official():
    return pytest.importorskip("mlperf_loadgen", reason="the official package is the judge")


def _outcome(act) -> object:
    """What an action gives, or the kind of its exception."""
    try:
        return act()
    except Exception as error:
        return TypeError if isinstance(error, TypeError) else type(error)


OPERATIONS = {
    "str": str,
    "repr": repr,
    "format": format,
    "padded": lambda x: f"{x!s:>30}",
    "int": int,
    "float": float,
    "index": operator.index,
    "hash": hash,
    "bool": bool,
    "name": lambda x: x.name,
    "value": lambda x: x.value,
    "by number": lambda x: str(type(x)(int(x))),
    "by itself": lambda x: str(type(x)(x)),
    "equal to its number": lambda x: (x == int(x), int(x) == x, x != int(x), int(x) != x),
    "equal to itself": lambda x: (x == type(x)(int(x)), x != type(x)(int(x))),
    "equal to nothing else": lambda x: (x == None, x == x.name, x == float(x)),  # noqa: E711
    "among numbers": lambda x: (x in [int(x)], x in {int(x): 0}, int(x) in {x}, x in {x: 0}),
    "order": lambda x: x < type(x)(0),
    "order of numbers": lambda x: x < 9,
    "sum": lambda x: x + 1,
    "union": lambda x: x | x,
    "inverse": lambda x: ~x,
    "position": lambda x: ["a", "b", "c", "d"][x],
    "range": lambda x: list(range(x)),
    "is a number": lambda x: isinstance(x, int),
    "json": json.dumps,
    "pickle": lambda x: str(pickle.loads(pickle.dumps(x))) + str(pickle.loads(pickle.dumps(x)) == x),
    "copy": lambda x: copy.deepcopy(x) == x,
    "key": lambda x: {x: 1}[type(x)(int(x))],
    "array": lambda x: str(np.array([x]).dtype),
    "name is fixed": lambda x: setattr(x, "name", "other"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", ENUMERATIONS)
def test_enumerations(kind, operation, official):
    ours, theirs = getattr(lg, kind), getattr(official, kind)
    assert dict(ours.__members__).keys() == theirs.__members__.keys()
    for name in theirs.__members__:
        expected = _outcome(lambda name=name: OPERATIONS[operation](getattr(theirs, name)))
        assert _outcome(lambda name=name: OPERATIONS[operation](getattr(ours, name))) == expected, name


def test_values_of_two_enumerations_differ():
    assert lg.TestScenario.Offline != lg.TestMode.FindPeakPerformance


def _with(**methods):
    return type("Made", (), {name: (lambda self, v=v: v) for name, v in methods.items()})()


VALUES = {
    "one": 1, "minus one": -1, "zero": 0, "int32": 2**31 - 1, "over int32": 2**31, "uint64": 2**64 - 1, "over uint64": 2**64,
    "huge": 10**400, "half": 1.5, "two": 2.0, "nan": float("nan"), "inf": float("inf"), "letter": "x", "digit": "5",
    "empty": "", "bytes": b"5", "no text": b"\xff", "bytearray": bytearray(b"x"), "none": None, "true": True, "false": False,
    "index": _with(__index__=3), "int": _with(__int__=3), "float": _with(__float__=3.5), "bool": _with(__bool__=True),
    "length": _with(__len__=0), "object": object(), "np int": np.int64(5), "np minus": np.int64(-1), "np double": np.float64(1.5),
    "np float": np.float32(1.5), "np nan": np.float32("nan"), "np bool": np.bool_(True), "0-d": np.array(5), "0-d float": np.array(1.5),
    "array": np.arange(3), "list": [1], "fraction": fractions.Fraction(3, 2), "decimal": decimal.Decimal("1.5"), "complex": 1j,
    "path": pathlib.Path("x"), "accent": "\u00e9", "null": "a\0b", "type": int,
    "scenario": "TestScenario.Server", "mode": "TestMode.AccuracyOnly", "logging": "LoggingMode.Synchronous",
    "output": "LogOutputSettings",
}  # fmt: skip


def _value(module, name: str):
    match name:
        case "scenario" | "mode" | "logging":
            kind, member = VALUES[name].split(".")
            return getattr(getattr(module, kind), member)
        case "output":
            return module.LogOutputSettings()
    return VALUES[name]


def _assigned(module, kind: str, field: str, name: str) -> object:
    settings = getattr(module, kind)()
    try:
        setattr(settings, field, _value(module, name))
        found = getattr(settings, field)
    except (TypeError, UnicodeDecodeError) as error:
        return type(error).__mro__[-3:]
    return str(found) if field != "log_output" else "log_output"


@pytest.mark.parametrize("kind", ["TestSettings", "LogSettings", "LogOutputSettings"])
def test_fields_take_and_refuse_the_same(kind, official):
    fields = [field for field in dir(getattr(official, kind)()) if not field.startswith("_")]
    for field in (field for field in fields if field != "FromConfig"):
        for name in VALUES:
            if (kind, name) == ("LogOutputSettings", "no text"):
                continue  # a path need not be UTF-8; there it cannot be read back
            theirs, ours = (_assigned(module, kind, field, name) for module in (official, lg))
            refused = isinstance(theirs, tuple)
            assert isinstance(ours, tuple) == refused, (field, name, ours, theirs)
            assert refused or ours == theirs, (field, name)


@pytest.mark.parametrize("kind", ["TestSettings", "LogSettings", "LogOutputSettings"])
def test_a_field_that_is_none_is_refused(kind):
    with pytest.raises(AttributeError):
        getattr(lg, kind)().nothing = 1


def test_a_refused_value_is_named_at_once():
    settings = lg.TestSettings()
    with pytest.raises(
        TypeError, match=r"TestSettings.min_query_count is 'x'; give a whole number"
    ) as raised:
        settings.min_query_count = "x"
    assert isinstance(raised.value, UserError) and settings.min_query_count == 100
    with pytest.raises(TypeError, match="a TestScenario"):
        lg.TestSettings(scenario=3)


def test_log_output_is_taken_over_as_a_copy(official):
    for module in (official, lg):
        settings, output = module.LogSettings(), module.LogOutputSettings()
        output.outdir = "first"
        settings.log_output = output
        output.outdir = "second"
        assert settings.log_output.outdir == "first"
        settings.log_output.outdir = "third"
        assert settings.log_output.outdir == "third"


@pytest.mark.parametrize(
    "construct",
    [
        lambda lg: lg.ConstructSUT(1, print),
        lambda lg: lg.ConstructSUT(print, "flush"),
        lambda lg: lg.ConstructFastSUT(print, 1),
        lambda lg: lg.ConstructQDL(print, print, "name"),
        lambda lg: lg.ConstructQSL(8, 8, 1, print),
        lambda lg: lg.ConstructQSL(8, 8, print, 1),
        lambda lg: lg.ConstructQSL(8.0, 8, print, print),
        lambda lg: lg.ConstructQSL(8, "8", print, print),
        lambda lg: lg.ConstructQSL(-8, 8, print, print),
        lambda lg: lg.StartTest(lg.ConstructSUT(print, print), lg.ConstructQSL(8, 8, print, print), 5),
        lambda lg: lg.StartTestWithLogSettings(
            lg.ConstructSUT(print, print), lg.ConstructQSL(8, 8, print, print), lg.TestSettings(), None
        ),
        lambda lg: lg.TestSettings().FromConfig("user.conf", "bert"),
        lambda lg: lg.TestSettings().FromConfig("user.conf", "bert", lg.TestScenario.Offline),
        lambda lg: lg.TestSettings().FromConfig("user.conf", None, "Offline"),
        lambda lg: lg.TestSettings().FromConfig(pathlib.Path("user.conf"), "bert", "Offline"),
    ],
)
def test_wrong_arguments_are_refused_at_once(construct, official, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (official, lg):
        with pytest.raises(TypeError):
            construct(module)
    assert not list(tmp_path.iterdir())


def test_a_network_is_asked_for_its_name_in_the_test(tmp_path):
    """As the official network demo needs it: it learns its address after it is constructed."""
    asked = []

    class Client:
        def name(self) -> str:
            asked.append(self.address)
            return f"at {self.address}"

        def issue(self, samples) -> None:
            lg.QuerySamplesComplete([lg.QuerySampleResponse(s.id, 0, 0) for s in samples])

    client = Client()
    sut = lg.ConstructQDL(client.issue, lambda: None, client.name)
    assert not asked
    client.address = "10.0.0.1"
    library = lg.ConstructQSL(8, 8, lambda _: None, lambda _: None)
    logs = systems.log_to(tmp_path)
    lg.StartTestWithLogSettings(sut, library, systems.settings("Offline", min_query_count=10), logs)
    client.address = "10.0.0.2"
    lg.StartTestWithLogSettings(sut, library, systems.settings("Offline", min_query_count=10), logs)
    assert systems.values(tmp_path, "sut_name") == ["at 10.0.0.2"]
    assert "SUT name : at 10.0.0.2" in (tmp_path / "mlperf_log_summary.txt").read_text()
    assert asked == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize("name", [lambda: 5, lambda: 1 / 0, lambda: pytest.fail("gone")])
def test_a_network_without_a_name_ends_the_test(name, tmp_path):
    sut = lg.ConstructQDL(lambda samples: None, lambda: None, name)
    library = lg.ConstructQSL(8, 8, lambda _: None, lambda _: None)
    with pytest.raises((TypeError, ZeroDivisionError, pytest.fail.Exception)):
        lg.StartTestWithLogSettings(sut, library, systems.settings("Offline"), systems.log_to(tmp_path))
    assert systems.errors(tmp_path)
    sut = lg.ConstructSUT(
        lambda samples: lg.QuerySamplesComplete([lg.QuerySampleResponse(s.id, 0, 0) for s in samples]),
        lambda: None,
    )
    lg.StartTestWithLogSettings(sut, library, systems.settings("Offline"), systems.log_to(tmp_path))
