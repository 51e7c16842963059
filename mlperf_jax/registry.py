"""How a workload is found: by a name of ours, or as a user's own class."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import TypeVar

from mlperf_jax.errors import UserError
from mlperf_jax.workload import ServedWorkload, TrainedWorkload, Workload

W = TypeVar("W", bound=Workload)

_REGISTRY = {
    "bert": "mlperf_jax.workloads.bert_pretraining:BertPretraining",
    "bert_qa": "mlperf_jax.workloads.question_answering:QuestionAnswering",
    "deepspeech2": "mlperf_jax.workloads.speech_recognition:DeepSpeech2Recognition",
    "dlrm": "mlperf_jax.workloads.recommendation:DLRMv1",
    "dlrm_dcnv2": "mlperf_jax.workloads.recommendation:DLRMDCNv2",
    "gnmt": "mlperf_jax.workloads.translation:GNMTTranslation",
    "gpt_oss_20b": "mlperf_jax.workloads.generation:ServedGptOss",
    "llama2_70b_lora": "mlperf_jax.workloads.generation:ServedLlama2LowRank",
    "llama31_8b": "mlperf_jax.workloads.generation:ServedLlama31",
    "maskrcnn": "mlperf_jax.workloads.instance_segmentation:MaskRCNNSegmentation",
    "maskrcnn2go": "mlperf_jax.workloads.pose_estimation:PoseEstimation",
    "minigo": "mlperf_jax.workloads.reinforcement_learning:MiniGo",
    "mobilenet": "mlperf_jax.workloads.image_classification:MobileNet",
    "ncf": "mlperf_jax.workloads.collaborative_filtering:NCF",
    "retinanet": "mlperf_jax.workloads.retinanet:RetinaNetDetection",
    "rnnt": "mlperf_jax.workloads.rnnt_recognition:RNNTRecognition",
    "objectron": "mlperf_jax.workloads.objectron:Objectron",
    "resnet50": "mlperf_jax.workloads.image_classification:ResNet50",
    "sentiment": "mlperf_jax.workloads.sentiment_analysis:Sentiment",
    "shufflenet": "mlperf_jax.workloads.image_classification:ShuffleNet",
    "ssd_mobilenet": "mlperf_jax.workloads.ssd_mobilenet:SSDMobileNet",
    "ssd_resnet34": "mlperf_jax.workloads.object_detection:SSDResNet34",
    "transformer": "mlperf_jax.workloads.translation:TransformerTranslation",
    "unet3d": "mlperf_jax.workloads.segmentation:UNet3DSegmentation",
}


_SERVED = {"bert": "bert_qa"}
"""Of a workload that MLPerf trains and serves with different heads, the one that is served."""


def served(name: str) -> str:
    """The workload whose model is measured where `name` is asked for: itself, but for few."""
    return _SERVED.get(name, name)


def names() -> list[str]:
    """The names that `--workload` takes."""
    return sorted(_REGISTRY)


def config_file(cls: type[Workload]) -> str:
    """Where the numbers of a workload are written, as "configs/resnet50.py"; of a user's own, beside its class."""
    path = f"{cls.__module__}:{cls.__qualname__}"
    name = next((name for name, known in _REGISTRY.items() if known == path), "")
    module = f"configs.{name}" if name else getattr(cls, "get_config", cls).__module__
    return module.replace(".", "/") + ".py"


def find(name: str, kind: type[W]) -> type[W]:
    """Returns the class of a workload, imported only now.

    Args:
        name: a name of the registry, or a user's own class as `package.module:Name`.
        kind: what it must be, `TrainedWorkload` or `ServedWorkload`.

    Raises:
        UserError: it cannot be found, or is no `Workload` of that kind.
    """
    path = _REGISTRY.get(name, name)
    module_name, colon, attribute = path.partition(":")
    if not colon:
        close = difflib.get_close_matches(name, _REGISTRY, n=1)
        hint = (
            f"did you mean {close[0]}?"
            if close
            else f"there are {', '.join(names())}, or package.module:Name."
        )
        raise UserError(f"There is no --workload={name}; {hint}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # Last: a user's folder of a generic name must not hide one of ours.
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, SyntaxError, AttributeError, ValueError) as error:
        raise UserError(
            f"--workload={name} cannot be loaded ({error}); it must be importable from here."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Workload)):
        raise UserError(f"--workload={name} is no subclass of mlperf_jax.workload.Workload.")
    if issubclass(found, kind):
        return found
    if issubclass(found, ServedWorkload):
        raise UserError(f"{found.__name__} is served, not trained; measure it with --scenario and --weights.")
    if issubclass(found, TrainedWorkload):
        raise UserError(f"{found.__name__} has no inference phases, so --scenario cannot measure it.")
    raise UserError(
        f"--workload={name} is neither trained nor served; derive it from TrainedWorkload or ServedWorkload."
    )
