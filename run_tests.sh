#!/usr/bin/env bash
# Makes the environment with the tests' packages and runs the tests.
#
#   ./run_tests.sh                     all of them, on all cores; those that measure time alone afterwards
#   ./run_tests.sh tests/models -x     arguments go to pytest, which runs in one process then
#   EXTRAS=test,parity ./run_tests.sh  with PyTorch as judge; without it those tests are skipped
#   REPORTS=folder ./run_tests.sh      leaves there what each test took: together.xml and alone.xml
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
EXTRAS="${EXTRAS:-test}"
. "$ROOT/.ci/environment.sh"
cd "$ROOT"
if [ $# -gt 0 ]; then exec "$PYTHON" -m pytest "$@"; fi

status=0
# A file is one worker's: its tests share what took long to make. A worker that dies ends the run: xdist would give its files
# out again, those that are done too, and wait for ever for a worker that got only such.
together=(-m "not timing" --numprocesses=logical --maxprocesses=8 --dist=loadfile --no-loadscope-reorder --max-worker-restart=0)
"$PYTHON" -m pytest "${together[@]}" ${REPORTS:+"--junitxml=$REPORTS/together.xml"} || status=$?
"$PYTHON" -m pytest -m timing ${REPORTS:+"--junitxml=$REPORTS/alone.xml"} || status=$?
exit $status
