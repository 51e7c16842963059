"""Prints each workload's share of the tests' time on the clock, from what pytest wrote as JUnit's XML.

    python .ci/shares.py together.xml alone.xml

A test file belongs to the first workload of which its path holds a word, and to the spine if to none. A new
workload is a line of `WORKLOADS`: its models, data, task and metric as its test files name them.
"""

from __future__ import annotations

import collections
import sys
from xml.etree import ElementTree

SPINE = "spine"  # what all workloads share
WORKLOADS = {
    "objectron": ("objectron", "tflite"),
    "ssd_mobilenet": ("ssd_mobilenet", "mined_sigmoid", "sampled_crop", "rmsprop"),
    "maskrcnn2go": ("maskrcnn2go", "keypoint", "figures"),
    "maskrcnn": ("maskrcnn", "masked_detection", "proposals", "regions", "outlines", "image_buckets"),
    "retinanet": ("retinanet", "pyramid", "openimages"),
    "ssd_resnet34": ("ssd", "coco", "composites", "box", "detection", "average_precision"),
    "unet3d": ("unet3d", "volumes", "segmentation"),
    "mobilenet, shufflenet": ("mobile", "grouped"),
    "resnet50": ("resnet", "imagenet", "preprocessing", "classification"),
    "bert, bert_qa": (
        "bert",
        "wikipedia",
        "masked",
        "wordpiece",
        "spans",
        "newsgroups",
        "answer",
        "tfrecord",
    ),
    "gnmt": ("gnmt", "recurrent_translation", "wmt16"),
    "rnnt": ("rnnt", "transducer", "test_sound", "utterances", "librispeech", "spoken"),
    "deepspeech2": ("deepspeech2", "ctc", "spectrogram", "word_error"),
    "sentiment": ("sentiment", "text_classifier", "labelled_text"),
    "answers by the token": (
        ".tokens.",
        "token_harness",
        "token_verdicts",
        "rouge",
        "attention_paged",
        "test_generation",
        "greedy_tokens",
    ),
    "gpt_oss_20b": ("experts", "gpt_oss"),
    "llama2_70b_lora": ("low_rank", "gguf", "gov_report", "debian_descriptions", "told_rows"),
    "llama31_8b": (
        "decoder",
        "token_loss",
        "language_model",
        "published_curves",
        "linux_doc",
        "token_stream",
        "c4",
    ),
    "transformer": ("transformer", "translation", ".text.", "beam_search", "bleu"),
    "ncf": ("ncf", "neumf", "negatives", "interactions", "collaborative"),
    "dlrm, dlrm_dcnv2": ("dlrm", "recommendation", "click", "embedding", "sparse", "auc"),
    "minigo": ("minigo", "reinforcement", ".go.", "tensorflow_file"),
}


def workload_of(file: str) -> str:
    """`tests.models.test_dlrm` -> `dlrm, dlrm_dcnv2`."""
    return next((name for name, words in WORKLOADS.items() if any(word in file for word in words)), SPINE)


def seconds_by_file(paths: list[str]) -> dict[str, float]:
    """What the tests of each file added to the clock, with what was made for them; by its dotted name.

    Of tests that ran side by side each has the part of the clock that it has of all of their times.
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    for path in paths:
        for suite in ElementTree.parse(path).iter("testsuite"):
            cases = [
                (case.get("classname", ""), float(case.get("time", 0))) for case in suite.iter("testcase")
            ]
            sides = float(suite.get("time", 0)) / (sum(time for _, time in cases) or 1.0)
            for file, time in cases:
                seconds[file] += time * sides
    return seconds


def table(seconds: dict[str, float]) -> list[str]:
    """A line a workload, the largest share first, with its slowest file."""
    files = collections.defaultdict(list)
    for file in sorted(seconds, key=seconds.__getitem__, reverse=True):
        files[workload_of(file)].append(file)
    spent = {name: sum(seconds[file] for file in found) for name, found in files.items()}
    whole = sum(spent.values()) or 1.0
    lines = [f"share of the tests' {whole:.0f} s:"]
    for name in sorted(spent, key=spent.__getitem__, reverse=True):
        slowest = files[name][0]
        lines.append(
            f"  {name:17} {spent[name] / whole:4.0%} {spent[name]:6.0f} s in {len(files[name]):2} files,"
            f" of which {seconds[slowest]:.0f} s in {slowest}"
        )
    return lines


if __name__ == "__main__":
    print("\n".join(table(seconds_by_file(sys.argv[1:]))))
