"""BLEU as MLPerf's Transformer is judged by: uncased, tokenised as mteval-v14 does, over the whole set.

The reference's own script (mlcommons/training, retired_benchmarks/transformer, compute_bleu.py) and
sacreBLEU's signature `nrefs:1|case:lc|eff:no|tok:intl|smooth:exp` give the same number, but for three
corners: sacreBLEU separates backslashes, and digits as "½" do not join punctuation to a number in the
script; where no word at all is right sacreBLEU says 0 and the script smooths.
"""

from __future__ import annotations

from collections.abc import Sequence


def bleu(translations: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU (Papineni et al., 2002) between 0 and 1 of translations [N] against references [N]."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(lowercase=True, tokenize="intl", smooth_method="exp")
    return metric.corpus_score(list(translations), [list(references)]).score / 100
