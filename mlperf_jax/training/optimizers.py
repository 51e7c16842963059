"""MLPerf's optimizers by name, as optax transformations, each transcribed from the rules' own equation.

The rules name other frameworks' implementations and ask anyone else to state the equation and
show that it is equivalent (training_policies, appendix "Allowed optimizers"): here the equation is in
the docstring, in `momentum`, `adam` and `norms`, and the tests run it against NumPy.
"""

from __future__ import annotations

import inspect
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from mlperf_jax.errors import UserError
from mlperf_jax.parallel.layout import LogicalAxes
from mlperf_jax.training.adam import adam, adamw, lamb, lazy_adam
from mlperf_jax.training.momentum import lars, sgd, torch_sgd
from mlperf_jax.training.norms import clip_by_global_norm
from mlperf_jax.training.rmsprop import rmsprop

_OPTIMIZERS = {
    factory.__name__: factory for factory in (adam, adamw, lamb, lars, lazy_adam, rmsprop, sgd, torch_sgd)
}


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule, mask: optax.Params, stacked: optax.Params | None = None
) -> optax.GradientTransformation:
    """Builds the optimizer that a workload's config asks for.

    Args:
        config: has `name`, and that optimizer's numbers under the names of its arguments (`momentum`,
            `weight_decay`, ...). With `clip_norm` gradients are first clipped to that global norm.
        schedule: learning rate as a function of the steps taken.
        mask: True where a parameter decays; see `decay_mask`.
        stacked: True where a parameter holds several layers, each with a norm of its own; see `is_stacked`.
            None for none.

    Raises:
        UserError: no optimizer has that name.
    """
    if config.name not in _OPTIMIZERS:
        raise UserError(f"There is no optimizer {config.name!r}; use one of {', '.join(_OPTIMIZERS)}.")
    factory = _OPTIMIZERS[config.name]
    offered = config.to_dict() | {
        "mask": mask,
        "stacked": jax.tree.map(lambda _: False, mask) if stacked is None else stacked,
        "tables": table_mask(mask),
    }
    taken = {name: offered[name] for name in inspect.signature(factory).parameters if name in offered}
    optimizer = factory(schedule, **taken)
    limit = config.get("clip_norm", 0)
    return optax.chain(clip_by_global_norm(limit), optimizer) if limit else optimizer


def is_stacked(axes: LogicalAxes | None) -> bool:
    """Whether a parameter with these logical axes holds several layers, as `models.stack` makes it."""
    return tuple(axes or ())[:1] == ("layers",)


def decay_mask(params: optax.Params) -> optax.Params:
    """Which parameters decay: the tree of `params` with False at norms' scales and at biases.

    These are the leaves named "scale", "bias", or "bias_" and more; arrays or their shapes will do.
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        name = str(getattr(path[-1], "key", None))
        return name not in ("scale", "bias") and not name.startswith("bias_")

    return jax.tree_util.tree_map_with_path(decays, params)


def table_mask(params: optax.Params) -> optax.Params:
    """Which parameters are tables that are looked up in: the leaves named "embedding"."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "embedding", params
    )
