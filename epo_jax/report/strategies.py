"""Kinds of strategies: clusters of their words, and how the shares of the clusters move over training.

Strategies are vectors of TF-IDF over words and pairs of words, clustered by k-means. Names of the characters and common
words are left out.
"""

import collections
from typing import Any, Mapping, NamedTuple, Optional, Sequence
import warnings

import numpy as np

FEWEST = 20     # distinct strategies that are clustered
MOST = 20_000   # strategies that are clustered at most, evenly spaced
KINDS = 8       # clusters at most
EXAMPLES = 4    # examples of a cluster
TERMS = 5       # words that name a cluster
WORD = r"(?u)(?<!['’])\b[^\W\d_]\w+\b(?!['’]\w)"  # without contractions such as don't and we'll


class Kind(NamedTuple):
    """A cluster of strategies.

    Attributes:
      terms: the words with the largest weights in its center.
      count: number of its strategies.
      examples: (text, number of an episode among those given), the nearest to its center first, all different.
    """

    terms: Sequence[str]
    count: int
    examples: Sequence[tuple[str, int]]


class Kinds(NamedTuple):
    """Clusters of strategies.

    Attributes:
      kinds: the clusters, the largest first.
      shares: for every run with strategies of at least two iterations: name, x (iterations), and y (by cluster, the
        share of its strategies in the iteration).
    """

    kinds: Sequence[Kind]
    shares: Sequence[Mapping[str, Any]]


def cluster(episodes: Sequence[Mapping[str, Any]], runs: Sequence[str]) -> tuple[Optional[Kinds], Optional[str]]:
    """Return the kinds of strategies, or None and why there are none; (None, None) without strategies.

    Args:
      episodes: in display form, see `report.episodes`.
      runs: names of the runs.
    """
    found = [(turn['strategy'], n) for n, episode in enumerate(episodes) for turn in episode['turns']
             if turn['strategy']]
    if not found:
        return None, None
    if (distinct := len({text for text, _ in found})) < FEWEST:
        return None, f'{distinct} distinct strategies are too few to group; {FEWEST} are needed.'
    try:
        from sklearn.cluster import KMeans
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
    except ImportError:
        return None, "Strategies are grouped where scikit-learn is installed: pip install 'epo_jax[report]'."
    found = found[::-(-len(found) // MOST)]
    texts = [text for text, _ in found]
    people = {word for e in episodes for seat in e['seats'] for word in str(seat.get('name')).lower().split()}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=min(2, len(texts) // 50 + 1),
                            max_features=5000, stop_words=list(ENGLISH_STOP_WORDS | people),
                            token_pattern=WORD)
    try:
        vectors = words.fit_transform(texts)
    except ValueError:  # no word is left
        return None, 'The strategies hold no words by which they could be grouped.'
    model = KMeans(min(KINDS, distinct // 5), n_init=4, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that fewer clusters were found, where many strategies have the same words
        near = -model.fit_transform(vectors)
    label, names = model.labels_, words.get_feature_names_out()
    order = [k for k, _ in collections.Counter(label.tolist()).most_common()]
    kinds = [Kind(_terms(model.cluster_centers_[k], names), int((label == k).sum()),
                  _examples(found, np.flatnonzero(label == k), near[:, k])) for k in order]
    return Kinds(kinds, _shares(episodes, runs, found, [order.index(k) for k in label], len(kinds))), None


def _terms(center: np.ndarray, names: np.ndarray) -> list[str]:
    """Return the words with the largest weights, without those that are part of a pair before them."""
    chosen: list[str] = []
    for name in names[np.argsort(-center)[:4 * TERMS]][:int((center > 0).sum())]:
        if len(chosen) < TERMS and not any(set(name.split()) & set(other.split()) for other in chosen):
            chosen.append(str(name))
    return chosen


def _examples(found: Sequence[tuple[str, int]], members: np.ndarray, near: np.ndarray) -> list[tuple[str, int]]:
    examples: dict[str, int] = {}
    for i in members[np.argsort(-near[members], kind='stable')]:
        examples.setdefault(*found[i])
        if len(examples) == EXAMPLES:
            break
    return list(examples.items())


def _shares(episodes: Sequence[Mapping[str, Any]], runs: Sequence[str], found: Sequence[tuple[str, int]],
            labels: Sequence[int], count: int) -> list[dict[str, Any]]:
    """Return the shares by iteration of training; evaluations are left out, since they are of other scenarios."""
    shares = []
    for r, name in enumerate(runs):
        table: dict[int, np.ndarray] = {}
        for (_, n), label in zip(found, labels):
            episode = episodes[n]
            if episode['run'] == r and episode['keys'] is None and episode['iteration'] is not None:
                table.setdefault(episode['iteration'], np.zeros(count))[label] += 1
        if len(table) > 1:
            x = sorted(table)
            shares.append({'name': name, 'x': x, 'y': [
                [float(table[i][k] / table[i].sum()) for i in x] for k in range(count)]})
    return shares
