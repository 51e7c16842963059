"""LoadGen in Python: query for query the official MLPerf Inference load generator.

Two idioms over one engine. A script for the official module runs with
`import loadgen_py as lg` in place of `mlperf_loadgen`. New code takes `run` with a
`SystemUnderTest` that gets arrays of samples and answers them in one call:

    class Echo:
        name = "echo"

        def start(self, responses):
            self.responses = responses

        def issue(self, ids, indices):
            self.responses.complete(ids)

        def flush(self):
            pass

    result = lg.run(Echo(), library, settings)
"""

from loadgen_py.advice import Reason
from loadgen_py.api import (
    ConstructFastSUT,
    ConstructQDL,
    ConstructQSL,
    ConstructSUT,
    DestroyFastSUT,
    DestroyQDL,
    DestroyQSL,
    DestroySUT,
    FirstTokenComplete,
    QuerySampleResponse,
    QuerySamplesComplete,
    StartTest,
    StartTestWithLogSettings,
    SutError,
)
from loadgen_py.official import run_official, side_by_side
from loadgen_py.responses import Responses
from loadgen_py.result import Result
from loadgen_py.run import run
from loadgen_py.settings import (
    LoggingMode,
    LogOutputSettings,
    LogSettings,
    TestMode,
    TestScenario,
    TestSettings,
)
from loadgen_py.sut import QuerySample, SampleLibrary, SystemUnderTest

VectorQuerySample = list
VectorQuerySampleResponse = list

__all__ = [
    "ConstructFastSUT",
    "ConstructQDL",
    "ConstructQSL",
    "ConstructSUT",
    "DestroyFastSUT",
    "DestroyQDL",
    "DestroyQSL",
    "DestroySUT",
    "FirstTokenComplete",
    "LogOutputSettings",
    "LogSettings",
    "LoggingMode",
    "QuerySample",
    "QuerySampleResponse",
    "QuerySamplesComplete",
    "Reason",
    "Responses",
    "Result",
    "SampleLibrary",
    "StartTest",
    "StartTestWithLogSettings",
    "SutError",
    "SystemUnderTest",
    "TestMode",
    "TestScenario",
    "TestSettings",
    "VectorQuerySample",
    "VectorQuerySampleResponse",
    "run",
    "run_official",
    "side_by_side",
]
