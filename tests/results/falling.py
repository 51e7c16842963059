"""Workloads whose figure falls, for the doors: `--workload=tests.results.falling:Name`."""

from mlperf_jax.goals import Direction, Goal
from tests import toys_text


class Loss(toys_text.Tagger):
    """One of the benchmarks that ruleset 6.1.0 has, by its name and by what its log counts."""

    benchmark = "llama31_8b"
    counts_samples = True

    @property
    def goals(self):
        return (Goal("loss", self.config.target.loss, Direction.LOSS, "log perplexity"),)


class Hopeless(toys_text.Tagger):
    """An error rate that stays far above its target."""

    benchmark = "toy_wer"

    @property
    def goals(self):
        return (Goal("error", self.config.target.error, Direction.ERROR, "word error rate"),)

    def evaluate(self, engine, state, notes=None):
        return {"error": 0.95}
