"""Conversion of text to index terms, as Lucene's EnglishAnalyzer does it.

It splits words by Unicode's rules (UAX #29), drops possessive 's, converts to lower case, drops stop words, and stems
with the variant of Porter's algorithm in Lucene's PorterStemmer.
"""

import re

import Stemmer

STOP_WORDS = frozenset(
    'a an and are as at be but by for if in into is it no not of on or such that the their then there these they '
    'this to was will with'.split())

# Character classes by Unicode property, restricted to what product texts contain. _NUMBERS are numeric characters
# other than digits.
_IDEOGRAPHS = '\u2e80-\u2fdf\u3005-\u3007\u3041-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff'  # each is a word
_MARKS = '\u00ad\u0300-\u036f\u200c-\u200f\u20d0-\u20ff\ufe00-\ufe0f'  # belong to the preceding character
_NUMBERS = '\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u215f\u2189\u2460-\u249b\u24ea-\u24ff\u2776-\u2793'
_PICTOGRAPHS = (
    '\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u2388\u23cf\u23e9-\u23f3\u23f8-'
    '\u23fa\u24c2\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705\u2708-'
    '\u2712\u2714\u2716\u271d\u2721\u2728\u2733\u2734\u2744\u2747\u274c\u274e\u2753-\u2755\u2757\u2763-\u2767\u2795-'
    '\u2797\u27a1\u27b0\u27bf\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299'
    '\U0001f000-\U0001faff')
_LETTER = rf'[^\W\d_{_IDEOGRAPHS}{_NUMBERS}]'
_WORD = re.compile(
    # Letters and digits. Some punctuation does not split a word between two letters, and some between two digits.
    rf"(?:[^\W{_IDEOGRAPHS}{_NUMBERS}]+|(?<=\w)[{_MARKS}]+"
    rf"|(?<={_LETTER})[:\uff1a\u00b7\u2027.'\u2018\u2019\u2024\uff0e\uff07](?={_LETTER})"
    rf"|(?<=\d)[,;.'\u2018\u2019\u2024\u2044\uff0c\uff1b\uff0e](?=\d))+"
    rf"|[{_IDEOGRAPHS}]|(?:[{_PICTOGRAPHS}](?:[{_MARKS}\U0001f3fb-\U0001f3ff]|(?<=\u200d)[{_PICTOGRAPHS}])*)")
_POSSESSIVE = re.compile("['\u2019\uff07][sS]$")


class Terms(dict):
    """A cache of word -> index term, filled on first access; stop words map to ''."""

    def __init__(self):
        super().__init__()
        self._stemmer = Stemmer.Stemmer('porter')  # Porter's algorithm as published

    def __missing__(self, word: str) -> str:
        plain = _POSSESSIVE.sub('', word).lower()
        self[word] = term = '' if plain in STOP_WORDS or not plain.strip('_') else self._stem(plain)
        return term

    def _stem(self, word: str) -> str:
        """Return the stem, including the cases in which Lucene's stemmer deviates from Porter's paper.

        Words of one or two characters stay unchanged. If Porter's measure of the preceding part is positive, -bli
        becomes -ble and is stemmed again, and -logi becomes -log.
        """
        if len(word) <= 2:
            return word
        stem = self._stemmer.stemWord(word)
        if stem.endswith('bli') and _has_positive_measure(stem[:-3]):
            return self._stemmer.stemWord(stem[:-1] + 'e')
        if stem.endswith('logi') and _has_positive_measure(stem[:-4]):
            return stem[:-1]
        return stem


def analyze(text: str, terms: Terms) -> list[str]:
    """Return the index terms of a text, in order, with repetitions.

    Args:
      text: any text.
      terms: a `Terms()`; share it between texts so that each word is converted only once.
    """
    return [term for word in _WORD.findall(text) if (term := terms[word])]


def _has_positive_measure(text: str) -> bool:
    """Return whether Porter's measure m of a word's beginning is positive: a consonant follows a vowel."""
    return re.search('[aeiou][^aeiou]|[^aeiou]y[^aeiouy]', text) is not None
