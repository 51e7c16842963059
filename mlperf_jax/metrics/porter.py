"""Porter's stemmer (M. F. Porter, "An algorithm for suffix stripping", 1980), with the changes that NLTK made to it.

It is what ROUGE compares words by. A consonant is a letter other than a, e, i, o, u, and other than a y behind a consonant;
the measure of a stem counts how often consonants follow vowels in it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

_IRREGULAR = {
    "skies": "sky",
    "sky": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "news": "news",
    "innings": "inning",
    "inning": "inning",
    "outings": "outing",
    "outing": "outing",
    "cannings": "canning",
    "canning": "canning",
    "howe": "howe",
    "proceed": "proceed",
    "exceed": "exceed",
    "succeed": "succeed",
}
_STEP_2 = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("bli", "ble"),
    ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate"),
    ("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"),
    ("iviti", "ive"), ("biliti", "ble"), ("fulli", "ful"),
)  # fmt: skip
_STEP_3 = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", ""),
)  # fmt: skip
_STEP_4 = [
    "al",
    "ance",
    "ence",
    "er",
    "ic",
    "able",
    "ible",
    "ant",
    "ement",
    "ment",
    "ent",
    "ion",
    "ou",
    "ism",
    "ate",
    "iti",
    "ous",
    "ive",
    "ize",
]

Condition = Callable[[str], bool]


@functools.lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of a word in lower case."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _past_and_ing(_plural(word))
    if word.endswith("y") and len(word) > 2 and _kinds(word)[-2] == "c":
        word = word[:-1] + "i"
    word = _step_2(word)
    word = _replaced(word, _STEP_3, _has_measure)
    return _last_letters(_step_4(word))


def _kinds(word: str) -> str:
    """Of each letter whether it is a vowel or a consonant: "v" or "c"."""
    found = ""
    for letter in word:
        vowel = letter in "aeiou" or (letter == "y" and found[-1:] == "c")
        found += "v" if vowel else "c"
    return found


def _measure(stem: str) -> int:
    return len(re.findall("vc", _kinds(stem)))


def _has_measure(stem: str) -> bool:
    return _measure(stem) > 0


def _ends_short(stem: str) -> bool:
    """Consonant, vowel, consonant other than w, x and y; or the two letters of a vowel and a consonant."""
    kinds = _kinds(stem)
    return (kinds.endswith("cvc") and stem[-1] not in "wxy") or kinds == "vc"


def _ends_double(word: str) -> bool:
    return len(word) >= 2 and word[-1] == word[-2] and _kinds(word)[-1] == "c"


def _replaced(word: str, rules: Sequence[tuple[str, str]], condition: Condition) -> str:
    """The first rule whose ending fits decides, whether its condition holds or not."""
    for ending, instead in rules:
        if word.endswith(ending):
            kept = word[: len(word) - len(ending)]
            return kept + instead if condition(kept) else word
    return word


def _plural(word: str) -> str:
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past_and_ing(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _has_measure(word[:-3]) else word
    for ending in ("ed", "ing"):
        kept = word[: -len(ending)]
        if word.endswith(ending) and "v" in _kinds(kept):
            break
    else:
        return word
    if kept.endswith(("at", "bl", "iz")):
        return kept + "e"
    if _ends_double(kept):
        return kept if kept[-1] in "lsz" else kept[:-1]
    return kept + "e" if _measure(kept) == 1 and _ends_short(kept) else kept


def _step_2(word: str) -> str:
    if word.endswith("alli") and _has_measure(word[:-4]):
        return _step_2(word[:-2])
    if word.endswith("logi"):
        return word[:-1] if _has_measure(word[:-3]) else word
    return _replaced(word, _STEP_2, _has_measure)


def _step_4(word: str) -> str:
    def condition(kept: str) -> bool:
        return _measure(kept) > 1 and (not word.endswith("ion") or kept[-1] in "st")

    return _replaced(word, [(ending, "") for ending in _STEP_4], condition)


def _last_letters(word: str) -> str:
    if word.endswith("e"):
        kept = word[:-1]
        measure = _measure(kept)
        if measure > 1 or (measure == 1 and not _ends_short(kept)):
            word = kept
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
