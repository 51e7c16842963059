"""BERT as published, into `models.bert`: TensorFlow's names, PyTorch's, and those that are left of them in ONNX.

TensorFlow's are those of google-research/bert and of MLPerf's checkpoint-28252 (bert/encoder/layer_0/attention/self/
query/kernel, cls/predictions/output_bias, of MLPerf Inference's SQuAD model cls/squad/output_weights); PyTorch's those
of `transformers` (bert.encoder.layer.0.attention.self.query.weight, cls.predictions.bias, qa_outputs.weight), in older
files with gamma and beta for norms. A trunk alone (MiniLM as sentence-transformers publish it) has no "bert" in front.
Optimizers' moments, steps and a file's own constants are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.weights.lazy import Tensor, together
from mlperf_jax.weights.source import TorchSource, unwrapped
from mlperf_jax.workload import State
from models.bert import BertConfig

_PARTS = re.compile(r"^(embeddings|encoder|pooler)\.")
_ENDINGS = {
    "gamma": "weight",
    "beta": "bias",
    "output_weights": "weight",
    "output_bias": "bias",
    **{f"{name}_embeddings": f"{name}_embeddings.weight" for name in ("word", "position", "token_type")},
}


def from_published(tensors: Mapping[str, Tensor], config: BertConfig, *, head: str | None) -> State:
    """Parameters, float32.

    Args:
        tensors: by TensorFlow's or PyTorch's names.
        config: sizes.
        head: "pretraining" for `models.bert.PretrainedBert`, "span" for `SpanBert`; None for the encoder alone and
            whatever heads the file has passed over.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model; or the last product of masked
            words is not the words' table.
    """
    source = _Bert(dict(_torchs(name, array) for name, array in tensors.items()))
    params: dict[str, Any] = {"encoder": source.encoder(config)}
    if head == "pretraining":
        params |= source.pretraining(config, params["encoder"]["embedding"])
    elif head == "span":
        params |= {"span": source.dense("qa_outputs", config.width, 2)}
        source.pass_over("bert.pooler.")
    else:
        params = params["encoder"]
        source.pass_over("bert.pooler.", "cls.", "qa_outputs.")
    source.refuse_left_over()
    return {"params": params, "model_state": {}}


def _torchs(name: str, array: Tensor) -> tuple[str, Tensor]:
    """PyTorch's name for an array, and the array as PyTorch has it."""
    if "/" not in name:
        name = unwrapped(name)
    elif name.endswith("/kernel"):
        name, array = name.removesuffix("kernel") + "weight", array.T
    name = re.sub(r"/layer_(\d+)/", r"/layer/\1/", name).replace("/", ".")
    *path, end = name.split(".")
    name = ".".join([*path, _ENDINGS.get(end, end)])
    name = re.sub(r"^cls\.squad\.", "qa_outputs.", name)
    return f"bert.{name}" if _PARTS.match(name) else name, array


class _Bert(TorchSource):
    """Arrays by PyTorch's names."""

    def encoder(self, config: BertConfig) -> dict[str, Any]:
        width, found = config.width, "bert.embeddings"
        sizes = {"word": config.vocab_size, "position": config.num_positions, "token_type": config.num_types}
        word, position, kind = (
            self.take(f"{found}.{name}_embeddings.weight", (rows, width)) for name, rows in sizes.items()
        )
        layers = [self.layer(f"bert.encoder.layer.{n}", config) for n in range(config.num_layers)]
        return {
            "embedding": word,
            "position_embedding": position,
            "type_embedding": kind,
            "embedding_norm": self.layer_norm(f"{found}.LayerNorm", width),
            "layers": jax.tree.map(lambda *arrays: together(arrays), *layers),
        }

    def layer(self, name: str, config: BertConfig) -> dict[str, Any]:
        width, mlp_width = config.width, config.mlp_width
        heads = config.num_heads, width // config.num_heads
        attention: dict[str, Any] = {}
        for part in ("query", "key", "value"):
            flat = self.dense(f"{name}.attention.self.{part}", width, width)
            attention[part] = {
                "kernel": flat["kernel"].reshape(width, *heads),
                "bias": flat["bias"].reshape(*heads),
            }
        out = self.dense(f"{name}.attention.output.dense", width, width)
        attention["out"] = {"kernel": out["kernel"].reshape(*heads, width), "bias": out["bias"]}
        return {
            "attention": attention,
            "attention_norm": self.layer_norm(f"{name}.attention.output.LayerNorm", width),
            "mlp_in": self.dense(f"{name}.intermediate.dense", width, mlp_width),
            "mlp_out": self.dense(f"{name}.output.dense", mlp_width, width),
            "mlp_norm": self.layer_norm(f"{name}.output.LayerNorm", width),
        }

    def pretraining(self, config: BertConfig, table: Tensor) -> dict[str, Any]:
        """The heads of pre-training over a table of words."""
        width, head = config.width, "cls.predictions"
        self._refuse_untied(f"{head}.decoder.weight", table)
        self.pass_over(f"{head}.decoder.")  # what is left of it is the head's own bias again
        return {
            "pooler": self.dense("bert.pooler.dense", width, width),
            "next_sentence": self.dense("cls.seq_relationship", width, 2),
            "transform": self.dense(f"{head}.transform.dense", width, width),
            "transform_norm": self.layer_norm(f"{head}.transform.LayerNorm", width),
            "bias_vocab": self.take(f"{head}.bias", (config.vocab_size,)),
        }

    def _refuse_untied(self, name: str, table: Tensor) -> None:
        if name in self._left and not np.array_equal(self.take(name, table.shape), table):
            raise UserError(f"The weights' {name} is not the words' table, which it is in this model.")

    def layer_norm(self, name: str, features: int) -> dict[str, Tensor]:
        shape = (features,)
        return {"scale": self.take(f"{name}.weight", shape), "bias": self.take(f"{name}.bias", shape)}

    def pass_over(self, *starts: str) -> None:
        self._left = {name: array for name, array in self._left.items() if not name.startswith(starts)}
