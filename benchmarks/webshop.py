"""Speed of the WebShop engine, on one core.

    python -m benchmarks.webshop [--data=DIR] [--documents=1180000]

Steps a second of two scripted customers and of one that clicks at random, each step with its page as text and what
can be clicked on it; and the time of a search. With --documents, the time, size and memory of an index of so many
invented texts, and the time of a search in it. All but the building's are processor times of the one thread, so that
a busy machine does not count.
"""

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
from epo_jax.envs.webshop.engine import Shop, Visit
from epo_jax.envs.webshop.experts import buyer, weak_buyer
from epo_jax.envs.webshop.variants import load_shop

REPEATS = 5
_DATA = flags.DEFINE_string('data', '', 'Folder of the 1,000-product catalogue; empty for the packaged one.')
_VISITS = flags.DEFINE_integer('visits', 200, 'Visits of every customer.')
_DOCUMENTS = flags.DEFINE_integer('documents', 0, 'Texts of a large index; 0: none.')


def random_customer(seed: int) -> Callable[[Shop, Visit], str]:
    """A customer who searches the wished product's name and then clicks at random."""
    rng = random.Random(seed)
    return lambda shop, visit: (f'search[{visit.goal.title}]' if visit.page == 'index'
                                else f'click[{rng.choice(shop.available(visit).clicks)}]')


def steps_per_second(shop: Shop, customer: Callable[[Shop, Visit], str], visits: int) -> float:
    """One measurement over the first goals; the customer's own deliberation counts."""
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


def search_milliseconds(index: search.Index, queries: list[str]) -> list[float]:
    """Of every query."""
    times = []
    for query in queries:
        start = time.process_time()
        index.search(query)
        times.append(1000 * (time.process_time() - start))
    return times


def invented_texts(count: int, rng: np.random.Generator, words: int = 120,
                   vocabulary: int = 500_000) -> Iterator[str]:
    """Texts of about so many words whose frequencies fall as in language (Zipf)."""
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
    variant = 'webshop-1k-synth-15' if _DATA.value else 'webshop-small-synth-15'
    shop = load_shop(variant, _DATA.value)
    print(f'{variant}: {len(shop.catalogue.products)} products, {len(shop.goals)} goals; medians of {REPEATS}')
    for customer in (buyer, weak_buyer, random_customer(0)):
        rates = [steps_per_second(shop, customer, _VISITS.value) for _ in range(REPEATS)]
        name = customer.__name__ if customer in (buyer, weak_buyer) else 'random clicks'
        print(f'{name}: {statistics.median(rates):,.0f} steps/s ({min(rates):,.0f} to {max(rates):,.0f})')
    queries = [goal.instruction for goal in shop.goals[:_VISITS.value]]
    medians = [statistics.median(search_milliseconds(shop.catalogue.index, queries)) for _ in range(REPEATS)]
    print(f'search: {statistics.median(medians):.3f} ms')
    if _DOCUMENTS.value:
        with tempfile.TemporaryDirectory() as folder:
            large(pathlib.Path(folder), _DOCUMENTS.value)


def large(folder: pathlib.Path, documents: int) -> None:
    """Builds an index of invented texts and searches it."""
    start = time.perf_counter()
    search.build(invented_texts(documents, np.random.default_rng(0)), folder)
    print(f'index of {documents:,} texts: {time.perf_counter() - start:.0f} s, '
          f'{sum(path.stat().st_size for path in folder.iterdir()) / 2**30:.2f} GiB on disk, at most '
          f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB in memory')
    index = search.load(folder, documents)
    for words in (3, 8, 15):
        texts = invented_texts(100, np.random.default_rng(1))
        queries = [' '.join(text.split()[:words]) for text in texts]
        search_milliseconds(index, queries)  # pages are read from disk
        runs = [sorted(search_milliseconds(index, queries)) for _ in range(REPEATS)]
        print(f'search of {words} words: {statistics.median(run[50] for run in runs):.1f} ms (median), '
              f'{statistics.median(run[94] for run in runs):.1f} ms (95 % are faster)')


if __name__ == '__main__':
    app.run(main)
