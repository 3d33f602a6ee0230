"""Search against recorded terms and hits of Lucene 9.9 (lucene.json), and against a plain version of its formula."""

import collections
import json
import math
import pathlib

import numpy as np
import pytest

from epo_jax.envs.webshop import search
from epo_jax.envs.webshop.analysis import Terms, analyze

LUCENE = json.loads((pathlib.Path(__file__).parent / 'lucene.json').read_text('utf-8'))


def index_of(texts, folder):
    search.build(iter(texts), folder)
    return search.load(folder, len(texts))


def formula(texts, query):
    """Compute document -> score by Lucene's BM25Similarity, in plain Python."""
    known = Terms()
    documents = [collections.Counter(analyze(text, known)) for text in texts]
    average = sum(document.total() for document in documents) / len(documents)

    def rounded(length):  # SmallFloat.byte4ToInt(intToByte4(length))
        if length < 24:
            return length
        bits = (length - 24).bit_length()
        return length if bits < 4 else 24 + ((length - 24) >> bits - 4 << bits - 4)

    scores = collections.defaultdict(float)
    for term, count in collections.Counter(analyze(query, known)).items():
        df = sum(term in document for document in documents)
        idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
        for d, document in enumerate(documents):
            if term in document:
                norm = 0.9 * (1 - 0.4 + 0.4 * rounded(document.total()) / average)
                scores[d] += count * idf * document[term] / (document[term] + norm)
    return scores


@pytest.mark.parametrize('text, terms', LUCENE['tokens'])
def test_terms_equal_those_of_lucene(text, terms):
    assert analyze(text, Terms()) == terms


def test_all_fifty_hits_equal_those_of_lucene_on_the_packaged_catalog(small):
    assert all(small.catalog.index.search(query) == hits for query, hits in LUCENE['small'])


def test_top_ten_hits_equal_those_of_lucene_on_the_official_products(official):
    same = [official.catalog.index.search(query)[:10] == hits for query, hits in LUCENE['1k']]
    assert len(same) == 415 and all(same)


def test_scores_equal_the_formula(tmp_path):
    rng = np.random.default_rng(0)
    texts = [' '.join(f'w{n}' for n in rng.zipf(1.4, rng.integers(1, 400)) if n < 300) for _ in range(120)]
    index = index_of(texts, tmp_path)
    for query in ('w1 w2 w3', 'w5 w5 w5 w40', 'w7 nothing', 'w250 w120 w3 w3'):
        expected = formula(texts, query)
        hits = index.search(query, 200)
        assert set(hits) == set(expected)
        in_order = [expected[hit] for hit in hits]
        assert np.allclose(in_order, sorted(in_order, reverse=True), rtol=1e-6)


def test_ties_are_in_document_order_and_documents_without_a_term_are_never_found(tmp_path):
    index = index_of(['red shoe', 'blue shoe', 'green hat', 'old shoe'], tmp_path)
    assert index.search('shoe') == [0, 1, 3]
    assert index.search('shoe', 2) == [0, 1]
    assert index.search('the of') == index.search('') == index.search('zebra') == []


def test_bound_on_scores_drops_no_hit_among_many_documents(tmp_path):
    rng = np.random.default_rng(1)
    frequencies = {'common': 0.9, 'frequent': 0.3, 'seldom': 0.2, 'rare': 0.01}
    texts = [' '.join([word for word, frequency in frequencies.items() if rng.random() < frequency]
                      + ['pad'] * rng.integers(60)) for _ in range(8000)]
    index = index_of(texts, tmp_path)
    for query in ('common rare', 'rare seldom seldom seldom common', 'frequent', 'seldom frequent rare rare common'):
        all_hits, expected = index.search(query, 8000), formula(texts, query)
        best = sorted(expected.values(), reverse=True)
        assert set(all_hits) == set(expected)
        assert np.allclose([expected[hit] for hit in all_hits], best, rtol=1e-6)
        for k in (1, 10, 50, 2000):
            assert index.search(query, k) == all_hits[:k]


def test_index_of_empty_texts_finds_nothing(tmp_path):
    assert index_of(['', '...'], tmp_path).search('shoe') == []
