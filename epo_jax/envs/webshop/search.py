"""Search by BM25 as Lucene computes it, on arrays that lie on disk and are mapped into memory.

    score(d) = sum over terms of count * idf * tf / (tf + k1 (1 - b + b length(d) / average length))
    idf = log(1 + (D - df + 0.5) / (df + 0.5))

Lucene keeps the length of a document in one byte, so that long lengths are rounded down to four significant bits;
that decides between close documents, and is done here too (org.apache.lucene.util.SmallFloat). What a term adds to
a document is computed once, when the index is built.

Axis letters: D documents, V terms of the vocabulary, P postings (pairs of a term and a document that has it).
"""

from array import array
import bisect
from collections import Counter
import dataclasses
from pathlib import Path
from typing import Iterable

import numpy as np

from epo_jax.envs.webshop.analysis import Terms, analyse

K1, B = 0.9, 0.4
_CHUNK = 1 << 22  # postings that are written at once


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """An inverted index.

    Attributes:
      documents: D.
      terms: u8 text of all terms, sorted, one after the other.
      term_ends: i64[V] where each ends there.
      starts: i64[V + 1] where the postings of a term begin.
      postings: i32[P] documents of every term, ascending.
      impacts: f32[P] what the term adds to the document's score.
    """

    documents: int
    terms: np.ndarray
    term_ends: np.ndarray
    starts: np.ndarray
    postings: np.ndarray
    impacts: np.ndarray

    def search(self, query: str, k: int = 50) -> list[int]:
        """The best documents, best first, k at most; of equals the one indexed first. Those without any term of
        the query are never found."""
        terms = [term for word in analyse(query, Terms()) if (term := self._find(word)) is not None]
        parts = [slice(*self.starts[term:term + 2].tolist()) for term in terms]  # a word said twice counts twice
        scores = np.zeros(self.documents, np.float32)
        for part in parts:
            np.add.at(scores, self.postings[part], self.impacts[part])
        # Lucene adds up in double precision: so is done for those that single precision, which errs by less than 1e-6
        # a term, leaves in question.
        threshold = _lower_bound(scores, k) * (1 - 1e-6 * len(parts))
        candidates = np.flatnonzero(scores >= max(threshold, np.finfo(np.float32).tiny)).astype(np.int32)
        final = np.zeros(len(candidates))
        for part in parts:
            at = part.start + np.searchsorted(self.postings[part.start:part.stop - 1], candidates)
            final += self.impacts[at] * (self.postings[at] == candidates)
        order = np.lexsort((candidates, -final.astype(np.float32)))[:k]
        return candidates[order].tolist()

    def _find(self, term: str) -> int | None:
        """The number of a term, None where no document has it."""
        key = term.encode()
        at = bisect.bisect_left(range(len(self.term_ends)), key, key=self._term)
        return at if at < len(self.term_ends) and self._term(at) == key else None

    def _term(self, number: int) -> bytes:
        return self.terms[self.term_ends[number - 1] if number else 0:self.term_ends[number]].tobytes()


def build(texts: Iterable[str], folder: Path) -> None:
    """Writes the index of some texts into a folder, one file an array.

    Args:
      texts: D of them; read once, none is kept.
      folder: exists.
    """
    known, numbers = Terms(), {}
    terms, frequencies, distinct, lengths = array('i'), array('H'), array('i'), array('i')
    for text in texts:
        words = analyse(text, known)
        counts = Counter(words)
        terms.extend([numbers.setdefault(word, len(numbers)) for word in counts])
        frequencies.extend([min(count, 0xffff) for count in counts.values()])
        distinct.append(len(counts))
        lengths.append(len(words))

    # The vocabulary is sorted, so that a term is found by bisection; numbers were given in order of appearance.
    vocabulary = sorted(numbers)
    rank = np.empty(len(vocabulary), np.int32)
    rank[[numbers[word] for word in vocabulary]] = np.arange(len(vocabulary))
    encoded = [word.encode() for word in vocabulary]
    np.save(folder / 'terms.npy', np.frombuffer(b''.join(encoded), np.uint8))
    np.save(folder / 'term_ends.npy', np.cumsum([len(word) for word in encoded], dtype=np.int64))
    del numbers, vocabulary, encoded

    term = rank[np.frombuffer(terms, np.int32)]
    del terms
    tf = np.frombuffer(frequencies, np.uint16)
    document = np.repeat(np.arange(len(lengths), dtype=np.int32), np.frombuffer(distinct, np.int32))
    df = np.bincount(term, minlength=len(rank))
    np.save(folder / 'starts.npy', np.concatenate([[0], np.cumsum(df)]).astype(np.int64))
    order = np.argsort(term, kind='stable')

    length = np.frombuffer(lengths, np.int32)
    average = np.float32(max(length.sum(), 1) / max(len(length), 1))
    inverse = 1 / (np.float32(K1) * (1 - np.float32(B) + np.float32(B) * _rounded(length) / average))
    idf = np.log(1 + (len(length) - df + 0.5) / (df + 0.5)).astype(np.float32)
    postings, impacts = (np.lib.format.open_memmap(folder / f'{name}.npy', 'w+', dtype, (len(term),))
                         for name, dtype in (('postings', np.int32), ('impacts', np.float32)))
    for start in range(0, len(term), _CHUNK):
        part = order[start:start + _CHUNK]
        weight = idf[term[part]]
        postings[start:start + _CHUNK] = document[part]
        impacts[start:start + _CHUNK] = weight - weight / (1 + tf[part] * inverse[document[part]])
    postings.flush()
    impacts.flush()


def load(folder: Path, documents: int) -> Index:
    """The index that `build` has written, mapped: processes share the memory."""
    # As plain arrays: taking a part of a numpy.memmap takes ten times as long.
    arrays = {name: np.load(folder / f'{name}.npy', mmap_mode='r').view(np.ndarray)
              for name in ('terms', 'term_ends', 'starts', 'postings', 'impacts')}
    return Index(documents, **arrays)


def _rounded(length: np.ndarray) -> np.ndarray:
    """Lengths as one byte of Lucene's keeps them: exact up to 40, then 24 plus four significant bits; f32."""
    rest = np.maximum(length - 24, 0)
    shift = np.maximum(np.frexp(rest.astype(np.float64))[1] - 4, 0)
    return (np.minimum(length, 24) + ((rest >> shift) << shift)).astype(np.float32)


def _lower_bound(scores: np.ndarray, k: int) -> float:
    """A score that at least k documents reach (0 where there are not so many), close to the k-th best, in one quick
    pass: of equal parts of the documents only the best is looked at."""
    parts = min(max(1024, 4 * k), len(scores))
    if parts < k:
        return 0.0
    best = scores[:len(scores) // parts * parts].reshape(-1, parts).max(0)
    return float(np.partition(best, parts - k)[parts - k])
