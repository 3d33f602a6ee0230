"""BM25 search as Lucene computes it, on memory-mapped arrays.

    score(d) = sum over terms of count * idf * tf / (tf + k1 (1 - b + b length(d) / average length))
    idf = log(1 + (D - df + 0.5) / (df + 0.5))

Lucene stores the length of a document in one byte and rounds long lengths down to four significant bits
(org.apache.lucene.util.SmallFloat). This affects the order of documents with similar scores, so it is reproduced here.
The contribution of a term to the score of a document is computed once, when the index is built.

Axis letters: D documents, V terms of the vocabulary, P postings (pairs of a term and a document that contains it).
"""

from array import array
import bisect
from collections import Counter
import dataclasses
from pathlib import Path
from typing import Iterable

import numpy as np

from epo_jax.envs.webshop.analysis import Terms, analyze

K1, B = 0.9, 0.4
_CHUNK = 1 << 22  # postings written at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """An inverted index.

    Attributes:
      documents: number of documents D.
      terms: u8, the sorted terms in UTF-8, concatenated.
      term_ends: i64[V], end of each term in `terms`.
      starts: i64[V + 1], start of each term's postings.
      postings: i32[P], documents of each term, ascending.
      impacts: f32[P], what the term adds to the document's score.
    """

    documents: int
    terms: np.ndarray
    term_ends: np.ndarray
    starts: np.ndarray
    postings: np.ndarray
    impacts: np.ndarray

    def search(self, query: str, k: int = 50) -> list[int]:
        """Return at most k documents, best first; ties are broken in favor of the document indexed first.

        Documents that contain no term of the query are never returned.
        """
        terms = [term for word in analyze(query, Terms()) if (term := self._find(word)) is not None]
        spans = [slice(*self.starts[term:term + 2].tolist()) for term in terms]  # a repeated word counts repeatedly
        scores = np.zeros(self.documents, np.float32)
        for span in spans:
            np.add.at(scores, self.postings[span], self.impacts[span])
        # Lucene sums in double precision. That is done only for the candidates which single precision, with an error
        # below 1e-6 per term, cannot rule out.
        threshold = _lower_bound(scores, k) * (1 - 1e-6 * len(spans))
        candidates = np.flatnonzero(scores >= max(threshold, np.finfo(np.float32).tiny)).astype(np.int32)
        final = np.zeros(len(candidates))
        for span in spans:
            at = span.start + np.searchsorted(self.postings[span.start:span.stop - 1], candidates)
            final += self.impacts[at] * (self.postings[at] == candidates)
        order = np.lexsort((candidates, -final.astype(np.float32)))[:k]
        return candidates[order].tolist()

    def _find(self, term: str) -> int | None:
        """Return the number of a term, or None if no document contains it."""
        key = term.encode()
        at = bisect.bisect_left(range(len(self.term_ends)), key, key=self._term)
        return at if at < len(self.term_ends) and self._term(at) == key else None

    def _term(self, number: int) -> bytes:
        return self.terms[self.term_ends[number - 1] if number else 0:self.term_ends[number]].tobytes()


def build(texts: Iterable[str], folder: Path) -> None:
    """Build the index of D texts and write it to a folder, one file per array.

    Args:
      texts: the texts; read once, so that an iterator suffices.
      folder: an existing folder.
    """
    known, numbers = Terms(), {}
    terms, frequencies, distinct, lengths = array('i'), array('H'), array('i'), array('i')
    for text in texts:
        words = analyze(text, known)
        counts = Counter(words)
        terms.extend([numbers.setdefault(word, len(numbers)) for word in counts])
        frequencies.extend([min(count, 0xffff) for count in counts.values()])
        distinct.append(len(counts))
        lengths.append(len(words))

    # Renumber the terms from order of appearance to sorted order, so that a term can be found by bisection.
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
        chunk = order[start:start + _CHUNK]
        weight = idf[term[chunk]]
        postings[start:start + _CHUNK] = document[chunk]
        impacts[start:start + _CHUNK] = weight - weight / (1 + tf[chunk] * inverse[document[chunk]])
    postings.flush()
    impacts.flush()


def load(folder: Path, documents: int) -> Index:
    """Memory-map the index that `build` wrote; processes that map it share the memory.

    Args:
      folder: the folder that was passed to `build`.
      documents: number of documents D.
    """
    # Plain arrays, because slicing a numpy.memmap takes ten times as long.
    arrays = {name: np.load(folder / f'{name}.npy', mmap_mode='r').view(np.ndarray)
              for name in ('terms', 'term_ends', 'starts', 'postings', 'impacts')}
    return Index(documents, **arrays)


def _rounded(length: np.ndarray) -> np.ndarray:
    """Round lengths, f32, as Lucene's byte does: exact up to 40, then 24 plus a number of four significant bits."""
    rest = np.maximum(length - 24, 0)
    shift = np.maximum(np.frexp(rest.astype(np.float64))[1] - 4, 0)
    return (np.minimum(length, 24) + ((rest >> shift) << shift)).astype(np.float32)


def _lower_bound(scores: np.ndarray, k: int) -> float:
    """Return a score, close to the k-th best, that at least k documents reach; 0 if there are fewer documents.

    It is the k-th best among the maxima of disjoint groups of documents, which takes a single fast pass.
    """
    groups = min(max(1024, 4 * k), len(scores))
    if groups < k:
        return 0.0
    best = scores[:len(scores) // groups * groups].reshape(-1, groups).max(0)
    return float(np.partition(best, groups - k)[groups - k])
