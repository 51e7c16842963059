#!/usr/bin/env bash
# Makes the environment, prepares the data, trains to the target and says how long it took.
#
#   ./run_and_time.sh --workload=resnet50 --platform=cpu
#   ./run_and_time.sh --help
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
EXTRAS=""
case " $* " in
  *" --platform=tpu "* | *" --platform tpu "*) EXTRAS=tpu ;;
  *" --platform=gpu "* | *" --platform gpu "*) EXTRAS=cuda ;;
esac
. "$ROOT/.ci/environment.sh"
# -P: a folder of the caller's called models/ or configs/ must not stand in for ours.
exec "$PYTHON" -P -m mlperf_jax.main --prepare "$@"
