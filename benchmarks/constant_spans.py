"""The best constant answer to the questions of BERT's mini: what its tuned head is held against.

    python -m benchmarks.constant_spans

"Words i to j of the context", for whichever i and j have the highest F1 on the evaluation set itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

import input_pipelines
from input_pipelines.text import wordnet_questions
from input_pipelines.text.spans import Question
from mlperf_jax.metrics import answers

_WORDS, _LONGEST = 80, 3  # of a context that are tried as the first, and most in an answer


def main() -> int:
    data_dir = input_pipelines.default_data_dir()
    print(f"Ready: {input_pipelines.prepare('wordnet_questions', data_dir)}")
    dataset = wordnet_questions.open_dataset(data_dir, {})
    first, count, found = best(dataset.questions)
    print(f"the {count} words of the context from number {first} on, counted from 0: F1 {found:.4f}")
    return 0


def best(questions: Sequence[Question]) -> tuple[int, int, float]:
    """First word, number of words and F1 of the best constant span."""
    split = [question.context.split() for question in questions]
    wanted = [[text for text, _ in question.answers] for question in questions]
    tried = [(first, count) for count in range(1, _LONGEST + 1) for first in range(_WORDS)]
    scores = [
        np.mean(
            [
                answers.f1(" ".join(words[first : first + count]), right)
                for words, right in zip(split, wanted, strict=True)
            ]
        )
        for first, count in tried
    ]
    at = int(np.argmax(scores))
    return *tried[at], float(scores[at])


if __name__ == "__main__":
    sys.exit(main())
