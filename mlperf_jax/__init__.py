"""An MLPerf-style benchmark suite native to JAX/XLA, for TPU, GPU and CPU."""

__version__ = "0.1.0"
