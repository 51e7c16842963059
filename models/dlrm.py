"""DLRM and DLRM-DCNv2: click-through rate from numbers and looked-up vectors.

Both map dense features through a small MLP to a vector of the tables' width, let it interact with one
vector per table, and read a logit off another MLP. DLRM (Naumov et al., arXiv:1906.00091) interacts by
dot products of all pairs; DCNv2 (Wang et al., arXiv:2008.13535) by cross layers of low rank. Here is
the dense part alone: looking up and pooling is `mlperf_jax.embedding`.

Sources: facebookresearch/dlrm, dlrm_s_pytorch.py; mlcommons/training,
recommendation_v2/torchrec_dlrm with torchrec/models/dlrm.py and torchrec/modules/crossnet.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.platform import compiled_for
from mlperf_jax.precision import Policy
from models.products import product

LayerInit = Callable[[jax.Array, int, int], tuple[jax.Array, jax.Array]]
"""(key, features in, features out) -> kernel [I, O] and bias [O], float32."""


@dataclasses.dataclass(frozen=True)
class DLRMConfig:
    """The shape of a model.

    Attributes:
        dense_features: numbers of an example.
        num_tables: vectors of an example.
        width: of those vectors; the bottom MLP must end with it.
        bottom, top: sizes of the MLPs' layers; the top one ends with 1.
        interaction: "dot" (DLRM) or "cross" (DCNv2).
        cross_layers, cross_rank: of DCNv2.
    """

    dense_features: int
    num_tables: int
    width: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    interaction: str = "dot"
    cross_layers: int = 0
    cross_rank: int = 0

    def __post_init__(self) -> None:
        if self.bottom[-1] != self.width:
            raise ValueError(f"model.bottom ends with {self.bottom[-1]}, not with the width {self.width}")
        if self.top[-1] != 1:
            raise ValueError(f"model.top ends with {self.top[-1]}, not with the one logit")
        if self.interaction not in ("dot", "cross"):
            raise ValueError(f"model.interaction is {self.interaction!r}, neither 'dot' nor 'cross'")

    @property
    def interacted(self) -> int:
        """Features that the interaction hands to the top MLP."""
        vectors = self.num_tables + 1
        if self.interaction == "cross":
            return vectors * self.width
        return self.width + vectors * (vectors - 1) // 2


def init_glorot_normal(key: jax.Array, features_in: int, features_out: int) -> tuple[jax.Array, jax.Array]:
    """DLRM's own: kernel N(0, 2 / (in + out)), bias N(0, 1 / out)."""
    kernel, bias = jax.random.split(key)
    return (
        jax.random.normal(kernel, (features_in, features_out)) * np.sqrt(2 / (features_in + features_out)),
        jax.random.normal(bias, (features_out,)) * np.sqrt(1 / features_out),
    )


def init_torch_linear(key: jax.Array, features_in: int, features_out: int) -> tuple[jax.Array, jax.Array]:
    """torch.nn.Linear's: kernel and bias uniform within 1 / sqrt(in)."""
    kernel, bias = jax.random.split(key)
    bound = 1 / np.sqrt(features_in)
    return (
        jax.random.uniform(kernel, (features_in, features_out), minval=-bound, maxval=bound),
        jax.random.uniform(bias, (features_out,), minval=-bound, maxval=bound),
    )


class MLP(nnx.Module):
    """Dense layers with ReLU between them, and where `activate_last` after the last.

    Kernels [I, O] split alternately by output and by input under tensor parallelism, so that an
    activation is exchanged once for every two layers.
    """

    def __init__(
        self, sizes: Sequence[int], *, init: LayerInit, activate_last: bool, policy: Policy, rngs: nnx.Rngs
    ) -> None:
        kernels, biases = [], []
        for i, (features_in, features_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            axes = (None, "mlp") if i % 2 == 0 else ("mlp", None)
            kernel, bias = init(rngs.params(), features_in, features_out)
            kernels.append(nnx.Param(kernel.astype(policy.param_dtype), axes=axes))
            biases.append(nnx.Param(bias.astype(policy.param_dtype), axes=axes[1:]))
        self.kernels, self.biases = nnx.List(kernels), nnx.List(biases)
        self.activate_last = activate_last
        self.dtype = policy.compute_dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, I] to [B, O] in the compute dtype."""
        x = x.astype(self.dtype)
        for i, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            x = product(x, kernel[...].astype(self.dtype)) + bias[...].astype(self.dtype)
            x = constrain(x, "batch", "mlp" if i % 2 == 0 else None)
            if self.activate_last or i < len(self.kernels) - 1:
                x = jax.nn.relu(x)
        return x


class LowRankCross(nnx.Module):
    """Cross layers of low rank: x <- x0 * (W (V x) + b) + x, V [F, r], W [r, F], b [F].

    V and W start Xavier normal, N(0, 2 / (F + r)), b as zero.
    """

    def __init__(self, features: int, rank: int, layers: int, *, policy: Policy, rngs: nnx.Rngs) -> None:
        std = np.sqrt(2 / (features + rank))

        def kernels(shape: tuple[int, int], axes: tuple[str | None, str | None]) -> nnx.List:
            draw = (std * jax.random.normal(rngs.params(), shape) for _ in range(layers))
            return nnx.List([nnx.Param(kernel.astype(policy.param_dtype), axes=axes) for kernel in draw])

        self.down = kernels((features, rank), (None, "mlp"))
        self.up = kernels((rank, features), ("mlp", None))
        zeros = jnp.zeros(features, policy.param_dtype)
        self.bias = nnx.List([nnx.Param(zeros, axes=(None,)) for _ in range(layers)])
        self.dtype = policy.compute_dtype

    def __call__(self, x0: jax.Array) -> jax.Array:
        """Maps [B, F] to [B, F]."""
        x = x0
        for down, up, bias in zip(self.down, self.up, self.bias, strict=True):
            low = constrain(x @ down[...].astype(self.dtype), "batch", "mlp")
            x = x0 * (low @ up[...].astype(self.dtype) + bias[...].astype(self.dtype)) + x
        return constrain(x, "batch", None)


class DLRM(nnx.Module):
    """The dense part of DLRM and DLRM-DCNv2."""

    def __init__(self, config: DLRMConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        self.config, self.dtype, self.output_dtype = config, policy.compute_dtype, policy.output_dtype
        init = init_glorot_normal if config.interaction == "dot" else init_torch_linear
        bottom, top = (config.dense_features, *config.bottom), (config.interacted, *config.top)
        self.bottom = MLP(bottom, init=init, activate_last=True, policy=policy, rngs=rngs)
        self.top = MLP(top, init=init, activate_last=False, policy=policy, rngs=rngs)
        if config.interaction == "cross":
            self.cross = LowRankCross(
                config.interacted, config.cross_rank, config.cross_layers, policy=policy, rngs=rngs
            )

    def __call__(self, dense: jax.Array, pooled: jax.Array) -> jax.Array:
        """Logits [B] in the output dtype, of dense features [B, F] and one vector per table [B, T, D]."""
        x = self.bottom(constrain(dense, "batch", None))
        pooled = constrain(pooled.astype(self.dtype), "batch", None, None)
        vectors = jnp.concatenate([x[:, None], pooled], axis=1)
        if self.config.interaction == "cross":
            # TPUs would copy [B, N, D] on its way to [B, N * D]; elsewhere it is written as the rows are gathered.
            on_tpu = compiled_for() == "tpu"
            flat = jnp.concatenate([x, pooled.reshape(len(x), -1)], axis=1) if on_tpu else vectors
            interacted = self.cross(flat.reshape(len(x), -1))
        else:
            interacted = jnp.concatenate([x, pairwise_dots(vectors)], axis=1)
        return self.top(interacted)[:, 0].astype(self.output_dtype)


def pairwise_dots(vectors: jax.Array) -> jax.Array:
    """Dot products of all pairs of [B, N, D]: [B, N (N - 1) / 2], the lower triangle by rows."""
    n = vectors.shape[1]
    products = jnp.einsum("bid,bjd->bij", vectors, vectors)
    first, second = np.tril_indices(n, -1)
    return products.reshape(-1, n * n)[:, first * n + second]


def count_dense_parameters(config: DLRMConfig) -> int:
    """Parameters outside of the tables."""
    mlps = ((config.dense_features, *config.bottom), (config.interacted, *config.top))
    count = sum((i + 1) * o for sizes in mlps for i, o in zip(sizes, sizes[1:], strict=False))
    if config.interaction == "cross":
        count += config.cross_layers * config.interacted * (2 * config.cross_rank + 1)
    return count


def flops_per_example(config: DLRMConfig) -> float:
    """Model FLOPs (2 per multiply-add) of a forward pass of the dense part; pooling is not counted."""
    mlps = ((config.dense_features, *config.bottom), (config.interacted, *config.top))
    products = sum(i * o for sizes in mlps for i, o in zip(sizes, sizes[1:], strict=False))
    if config.interaction == "cross":
        products += config.cross_layers * 2 * config.interacted * config.cross_rank
    else:
        vectors = config.num_tables + 1
        products += vectors * (vectors - 1) // 2 * config.width
    return 2.0 * products
