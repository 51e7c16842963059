"""TF-IDF and logistic regression on the film review snippets: the accuracy that sentiment's mini is held against.

    python -m benchmarks.bag_of_words

scikit-learn's, with its own defaults, on the split and the words of `input_pipelines.text.movie_snippets`; once
of single words, once of pairs too.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import input_pipelines
from input_pipelines.text import movie_snippets


def accuracy(train: movie_snippets.Split, evaluation: movie_snippets.Split, longest: int) -> float:
    """Of the evaluation split, by words and sequences of up to `longest` of them."""
    model = make_pipeline(
        TfidfVectorizer(analyzer=lambda text: _sequences(text, longest)), LogisticRegression(max_iter=1000)
    )
    return float(model.fit(*train).score(*evaluation))


def _sequences(text: list[bytes], longest: int) -> list[bytes]:
    return [
        b" ".join(text[i : i + size]) for size in range(1, longest + 1) for i in range(len(text) - size + 1)
    ]


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        texts = movie_snippets.fetch_snippets(input_pipelines.default_data_dir(), Path(scratch))
    splits = movie_snippets.split(texts)
    for longest, name in ((1, "words"), (2, "words and pairs")):
        found = accuracy(*splits, longest)
        print(f"TF-IDF of {name} and logistic regression on the film review snippets: accuracy {found:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
