"""Llama as published, into `models.decoder`: the names of `transformers`.

model.embed_tokens.weight, model.layers.0.self_attn.q_proj.weight, model.layers.0.input_layernorm.weight, lm_head.weight and so
on; rotary positions turn halves there as they do here. MLPerf's Llama 2 70B has queries, keys and values in one
self_attn.qkv_proj.weight. Waves of the positions are passed over; a last product that is the table of embeddings may be there
or not. Of experts the names are those of Qwen3-MoE, whose layers MLPerf's gpt_oss_20b has but for windows, one by one, or those
of OpenAI's gpt-oss, all in one array. llama.cpp (GGUF) has names of its own, and turns pairs of neighbours, for which rows of
queries and keys are put in another order there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.weights.lazy import LazyArray, Tensor, parted, together
from mlperf_jax.weights.source import Source, unwrapped
from mlperf_jax.workload import State
from models.decoder import DecoderConfig


def from_published(tensors: Mapping[str, Tensor], config: DecoderConfig) -> State:
    """Parameters, float32; without low-rank changes, of which nothing is published with the model.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    if _GGUF_TABLE in tensors:
        if config.num_experts:
            raise UserError("There is no import of GGUF's models of experts; give safetensors.")
        tensors = _of_gguf(tensors, config)
    source = _Llama({unwrapped(name): array for name, array in tensors.items()})
    if source.has("layers.0.self_attn.sinks"):
        raise UserError(
            "The weights are OpenAI's gpt-oss, with attention sinks and biases, which MLPerf's model of that name does not "
            "have; train it, or give weights of its own."
        )
    layers = [source.layer(f"layers.{n}", config) for n in range(config.num_layers)]
    table = source.take("embed_tokens.weight", (config.vocab_size, config.width))
    params: dict[str, Any] = {
        "embedding": table,
        "layers": jax.tree.map(lambda *arrays: together(arrays), *layers),
        "norm": source.norm("norm", config.width),
    }
    if not config.tied:
        params["head"] = source.take("lm_head.weight", (config.vocab_size, config.width)).T
    elif source.has("lm_head.weight") and not np.array_equal(
        source.take("lm_head.weight", table.shape), np.asarray(table)
    ):
        raise UserError(
            "The weights' lm_head.weight is not the table of embeddings, which it is in this model."
        )
    source.refuse_left_over()
    return {"params": params, "model_state": {}}


_GGUF_TABLE = "token_embd.weight"
# llama.cpp's names -> those of `transformers`; of a layer, behind "blk.0.".
_GGUF_NAMES = {
    _GGUF_TABLE: "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "lm_head.weight",
}
_GGUF_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _of_gguf(tensors: Mapping[str, Tensor], config: DecoderConfig) -> dict[str, Tensor]:
    """Under the names of `transformers`; what has none keeps its own."""
    heads = {"attn_q": config.num_heads, "attn_k": config.num_key_heads}
    found: dict[str, Tensor] = {}
    for name, array in tensors.items():
        block, _, rest = name.partition(".")
        number, _, part = rest.partition(".")
        part = part.removesuffix(".weight")
        if block != "blk" or part not in _GGUF_PARTS:
            found[_GGUF_NAMES.get(name, name)] = array
            continue
        if part in heads and array.ndim == 2 and array.shape[0] == heads[part] * config.head_width:
            array = _in_halves(array, heads[part])
        found[f"layers.{number}.{_GGUF_PARTS[part]}.weight"] = array
    return found


def _in_halves(array: Tensor, heads: int) -> Tensor:
    """Rows [heads, pairs, 2] in the order [heads, 2, pairs]: as they turn in halves."""
    rows, columns = array.shape
    return array.reshape(heads, rows // heads // 2, 2, columns).transpose(0, 2, 1, 3).reshape(rows, columns)


class _Llama(Source):
    """Arrays of bare products [out, in]."""

    def has(self, name: str) -> bool:
        return name in self._left

    def norm(self, name: str, features: int) -> dict[str, Tensor]:
        return {"scale": self.take(f"{name}.weight", (features,))}

    def layer(self, name: str, config: DecoderConfig) -> dict[str, Any]:
        width, head = config.width, config.head_width
        of_queries, of_keys = config.num_heads * head, config.num_key_heads * head
        attention: dict[str, Any] = {
            part: {"kernel": parted(array.T, 1, (array.shape[0] // head, head))}
            for part, array in self._projections(f"{name}.self_attn", width, of_queries, of_keys).items()
        }
        out = self.take(f"{name}.self_attn.o_proj.weight", (width, of_queries)).T
        attention["out"] = {"kernel": parted(out, 0, (config.num_heads, head))}
        if config.query_key_norm:
            attention |= {
                f"{part}_norm": self.norm(f"{name}.self_attn.{part[0]}_norm", head)
                for part in ("query", "key")
            }
        return {
            "attention_norm": self.norm(f"{name}.input_layernorm", width),
            "attention": attention,
            "mlp_norm": self.norm(f"{name}.post_attention_layernorm", width),
            "mlp": self._experts(f"{name}.mlp", config)
            if config.num_experts
            else self._network(name, config),
        }

    def _network(self, name: str, config: DecoderConfig) -> dict[str, Any]:
        return {part: {"kernel": array} for part, array in self._products(f"{name}.mlp", config).items()}

    def _products(self, name: str, config: DecoderConfig) -> dict[str, Tensor]:
        """Of one feed-forward network [in, out]."""
        out = {"gate": config.mlp_width, "up": config.mlp_width, "down": config.width}
        into = {"gate": config.width, "up": config.width, "down": config.mlp_width}
        return {
            part: self.take(f"{name}.{part}_proj.weight", (out[part], into[part])).T
            for part in ("gate", "up", "down")
        }

    def _experts(self, name: str, config: DecoderConfig) -> dict[str, Any]:
        experts, width, mlp = config.num_experts, config.width, config.mlp_width
        if self.has(f"{name}.experts.gate_up_proj"):
            both = self.take(f"{name}.experts.gate_up_proj", (experts, width, 2 * mlp))
            kernels: dict[str, Tensor] = {
                "gate": _every_other(both, 0),
                "up": _every_other(both, 1),
                "down": self.take(f"{name}.experts.down_proj", (experts, mlp, width)),
            }
            router = "router"
        else:
            each = [self._products(f"{name}.experts.{n}", config) for n in range(experts)]
            kernels = {part: together([one[part] for one in each]) for part in each[0]}
            router = "gate"
        return {"router": self.take(f"{name}.{router}.weight", (experts, width)).T, **kernels}

    def _projections(self, name: str, width: int, of_queries: int, of_keys: int) -> dict[str, Tensor]:
        """Queries, keys and values [out, in]."""
        sizes = {"query": of_queries, "key": of_keys, "value": of_keys}
        if not self.has(f"{name}.qkv_proj.weight"):
            return {
                part: self.take(f"{name}.{part[0]}_proj.weight", (size, width))
                for part, size in sizes.items()
            }
        together = self.take(f"{name}.qkv_proj.weight", (sum(sizes.values()), width))
        starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
        return {part: _rows(together, starts[part], size) for part, size in sizes.items()}

    def refuse_left_over(self) -> None:
        left = [name for name in self._left if not name.endswith("rotary_emb.inv_freq")]
        if left:
            raise UserError(
                f"The weights have {left[0]}, which this model does not; they are of another model."
            )


def _rows(array: Tensor, start: int, count: int) -> LazyArray:
    """Some rows of an array, of which no others are read."""

    def read(index: tuple[slice, ...]) -> np.ndarray:
        first, rest = index
        return np.asarray(array[slice(start + first.start, start + first.stop), rest])

    return LazyArray((count, array.shape[1]), array.dtype, read)


def _every_other(array: Tensor, first: int) -> LazyArray:
    """Columns `first`, `first` + 2, ... of an array [E, I, O]."""
    *rows, columns = array.shape

    def read(index: tuple[slice, ...]) -> np.ndarray:
        *rest, last = index
        part = np.asarray(array[(*rest, slice(2 * last.start, 2 * last.stop))])
        return np.array(part[..., first::2])

    return LazyArray((*rows, columns // 2), array.dtype, read)
