#!/usr/bin/env bash
# Makes the environment with the tests' packages and runs the tests; arguments go to pytest.
#
#   ./run_tests.sh                     everything
#   ./run_tests.sh tests/models -x     a part
#   EXTRAS=test,parity ./run_tests.sh  with PyTorch as judge; without it those tests are skipped
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
EXTRAS="${EXTRAS:-test}"
. "$ROOT/.ci/environment.sh"
cd "$ROOT"
exec "$PYTHON" -m pytest "$@"
