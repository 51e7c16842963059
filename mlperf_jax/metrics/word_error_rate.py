"""Word error rate: words substituted, deleted and inserted, over the words that were said.

Words are counted by jiwer. Texts are compared in lower case, and white space only parts words, as MLPerf's references
have it (mlcommons/training, rnn_speech_recognition/pytorch/common/metrics.py; speech_recognition/pytorch/decoder.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def word_errors(answers: Sequence[str], references: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The least edits from each reference to its answer, and the reference's words: [N] int64 each.

    Raises:
        ValueError: there are not as many answers as references.
    """
    import jiwer

    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers to {len(references)} references")
    compared = jiwer.process_words([_plain(text) for text in references], [_plain(text) for text in answers])
    errors = [
        sum(
            max(part.ref_end_idx - part.ref_start_idx, part.hyp_end_idx - part.hyp_start_idx)
            for part in parts
            if part.type != "equal"
        )
        for parts in compared.alignments
    ]
    return np.array(errors, np.int64), np.array([len(words) for words in compared.references], np.int64)


def word_error_rate(answers: Sequence[str], references: Sequence[str]) -> float:
    """Errors over words of all texts together: RNN-T's figure."""
    errors, words = word_errors(answers, references)
    return float(errors.sum() / max(words.sum(), 1))


def mean_word_error_rate(answers: Sequence[str], references: Sequence[str]) -> float:
    """The mean of the texts' own rates, whatever their lengths: DeepSpeech2's figure."""
    errors, words = word_errors(answers, references)
    return float(np.mean(errors / np.maximum(words, 1)))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
