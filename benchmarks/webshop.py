"""Measure the speed of the WebShop engine on one core.

    python -m benchmarks.webshop [--data=DIR] [--documents=1180000 [--peers]]

The benchmark prints the steps per second of two scripted customers and of one that clicks at random, where a step
includes the page as text and its available actions, and the time of a search. With --documents, it also builds an
index of that many synthetic texts and prints the build time, the size on disk, the peak memory and the search time.
With --peers, it repeats this with bm25s (which is faster if numba is installed) and compares the top ten results with
ours. All times are processor times of a single thread, so other load on the machine hardly affects them.
"""

from array import array
from concurrent.futures import ProcessPoolExecutor
import importlib.util
import multiprocessing
import pathlib
import random
import resource
import statistics
import tempfile
import time
from typing import Callable, Iterator

from absl import app, flags
import numpy as np

from epo_jax.envs.webshop import search
from epo_jax.envs.webshop.analysis import Terms, analyze
from epo_jax.envs.webshop.engine import Shop, Visit
from epo_jax.envs.webshop.scripted import buyer, weak_buyer
from epo_jax.envs.webshop.variants import load_shop

REPEATS = 5
_DATA = flags.DEFINE_string('data', '', 'Folder of the 1,000-product catalog; empty for the packaged catalog.')
_VISITS = flags.DEFINE_integer('visits', 200, 'Number of visits of each customer.')
_DOCUMENTS = flags.DEFINE_integer('documents', 0, 'Number of synthetic texts in a large index; 0 skips it.')
_PEERS = flags.DEFINE_boolean('peers', False, 'Also build and search the large index with bm25s.')


def random_customer(seed: int) -> Callable[[Shop, Visit], str]:
    """Return a customer who searches for the name of the wanted product and then clicks at random."""
    rng = random.Random(seed)
    return lambda shop, visit: (f'search[{visit.goal.title}]' if visit.page == 'index'
                                else f'click[{rng.choice(shop.available(visit).clicks)}]')


def steps_per_second(shop: Shop, customer: Callable[[Shop, Visit], str], visits: int) -> float:
    """Measure steps per second over the first `visits` goals, including the time of the customer's code."""
    steps, start = 0, time.process_time()
    for goal in shop.goals[:visits]:
        visit = Visit(goal)
        for _ in range(15):
            visit = shop.step(visit, customer(shop, visit))
            shop.observe(visit)
            shop.available(visit)
            steps += 1
            if visit.done:
                break
    return steps / (time.process_time() - start)


def search_milliseconds(find: Callable[[str], list[int]], queries: list[str]) -> list[float]:
    """Measure the processor time of each query in milliseconds."""
    times = []
    for query in queries:
        start = time.process_time()
        find(query)
        times.append(1000 * (time.process_time() - start))
    return times


def synthetic_texts(count: int, rng: np.random.Generator, words: int = 120,
                    vocabulary: int = 500_000) -> Iterator[str]:
    """Yield `count` texts of about `words` words each, whose frequencies follow Zipf's law."""
    rank = np.arange(1, vocabulary + 1)
    cumulative = np.cumsum(1 / (rank + 2.7) ** 1.05)
    for start in range(0, count, 1000):
        lengths = rng.lognormal(np.log(words) - 0.18, 0.6, min(1000, count - start)).astype(int) + 1
        drawn = np.searchsorted(cumulative, rng.random(lengths.sum()) * cumulative[-1])
        for part in np.split(drawn, np.cumsum(lengths)[:-1]):
            yield ' '.join(f'w{number}' for number in part.tolist())


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    if _PEERS.value and importlib.util.find_spec('bm25s') is None:
        raise app.UsageError("--peers needs bm25s; run pip install bm25s, or install the extra 'bench'")
    variant = 'webshop-1k-synth-15' if _DATA.value else 'webshop-small-synth-15'
    shop = load_shop(variant, _DATA.value)
    print(f'{variant}: {len(shop.catalog.products)} products, {len(shop.goals)} goals; medians of {REPEATS}')
    for customer in (buyer, weak_buyer, random_customer(0)):
        rates = [steps_per_second(shop, customer, _VISITS.value) for _ in range(REPEATS)]
        name = customer.__name__ if customer in (buyer, weak_buyer) else 'random clicks'
        print(f'{name}: {statistics.median(rates):,.0f} steps/s ({min(rates):,.0f} to {max(rates):,.0f})')
    queries = [goal.instruction for goal in shop.goals[:_VISITS.value]]
    medians = [statistics.median(search_milliseconds(shop.catalog.index.search, queries)) for _ in range(REPEATS)]
    print(f'search: {statistics.median(medians):.3f} ms')
    if _DOCUMENTS.value:
        with tempfile.TemporaryDirectory() as folder:
            for library in (ours, bm25s)[:1 + _PEERS.value]:  # a process each, to measure its peak memory
                with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
                    process.submit(measure_large_index, library, pathlib.Path(folder), _DOCUMENTS.value).result()


def measure_large_index(library: Callable[[pathlib.Path, int], Callable[[str], list[int]]], folder: pathlib.Path,
                        documents: int) -> None:
    """Build an index of synthetic texts in a subfolder named after the library, search it and print measurements."""
    start = time.process_time()
    find = library(folder / library.__name__, documents)
    print(f'{library.__name__}, {documents:,} texts: built in {time.process_time() - start:.0f} s, '
          f'{sum(path.stat().st_size for path in (folder / library.__name__).iterdir()) / 2**30:.2f} GiB on disk, '
          f'peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB', flush=True)
    for words in (3, 8, 15):
        texts = synthetic_texts(100, np.random.default_rng(1))
        queries = [' '.join(text.split()[:words]) for text in texts]
        search_milliseconds(find, queries)  # reads the pages from disk
        runs = [sorted(search_milliseconds(find, queries)) for _ in range(REPEATS)]
        exact = search.load(folder / 'ours', documents).search
        pairs = [({*find(query)[:10]}, {*exact(query)[:10]}) for query in queries]
        overlap = statistics.mean(len(hits & best) / len(best) for hits, best in pairs if best)
        print(f'search for {words} words: {statistics.median(run[50] for run in runs):.1f} ms (median), '
              f'{statistics.median(run[94] for run in runs):.1f} ms (95th percentile); '
              f'{overlap:.4f} of our top ten found', flush=True)


def ours(folder: pathlib.Path, documents: int) -> Callable[[str], list[int]]:
    """Build our index; return a function from a query to document numbers."""
    folder.mkdir()
    search.build(synthetic_texts(documents, np.random.default_rng(0)), folder)
    return search.load(folder, documents).search


def bm25s(folder: pathlib.Path, documents: int) -> Callable[[str], list[int]]:
    """Build bm25s's index of the same terms and map it; return a function from a query to document numbers."""
    from bm25s import BM25
    from bm25s.tokenization import Tokenized
    terms, numbers = Terms(), {}
    number = lambda text: array('i', [numbers.setdefault(term, len(numbers)) for term in analyze(text, terms)])
    tokens = [number(text) for text in synthetic_texts(documents, np.random.default_rng(0))]
    backend = 'numba' if importlib.util.find_spec('numba') else 'numpy'
    index = BM25(method='lucene', k1=search.K1, b=search.B, backend=backend)
    index.index(Tokenized(tokens, numbers), show_progress=False)
    index.save(folder, show_progress=False)
    index = BM25.load(folder, mmap=True)
    if backend == 'numba':
        index.compile()
    return lambda query: index.retrieve(
        [analyze(query, Terms())], k=50, show_progress=False, backend_selection=backend).documents[0].tolist()


if __name__ == '__main__':
    app.run(main)
