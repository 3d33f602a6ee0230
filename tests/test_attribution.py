"""The attribution benchmark: what agrees and what does not, and its page. Nothing is trained."""

import numpy as np
import pytest

from benchmarks import attribution

VALID = np.array([[True, True, True], [True, True, False]])
TRUTH = np.array([[0.3, -0.2, 0.1], [-0.4, 0.5, np.nan]])
ERROR = np.full(TRUTH.shape, 0.06)  # the truth of 0.1 is not clear


@pytest.mark.parametrize('credit, expected', [
    (TRUTH * 5, (1, 1, 1)),
    (-TRUTH, (-1, -1, 0)),
    (np.where(TRUTH == 0.1, -1.0, TRUTH), (None, None, 1)),  # a wrong sign where the truth is not clear
    (np.array([[1.0, 1.0, 1.0], [-1.0, -1.0, 0.0]]), (None, 0, 0.5))])  # the same for all turns of an episode
def test_agreement(credit, expected):
    found = attribution.agreement(np.nan_to_num(credit), TRUTH, VALID, ERROR)
    for name, value in zip(('all', 'within', 'sign'), expected):
        assert value is None or found[name] == pytest.approx(value)


def test_the_page_sorts_methods_and_gives_intervals_over_seeds():
    row = lambda value: dict(all=value, within=0.5, sign=0.75)
    results = [dict(seed=seed, iterations=3, turns=9, methods=dict(weak=row(0.1), strong=row(0.8 + 0.1 * seed)))
               for seed in range(3)]
    page = attribution.page(results, 'command')
    assert page.index('| strong | 0.90 ± 0.25 | 0.50 ± 0.00 | 0.75 ± 0.00 |') < page.index('| weak | 0.10 ± 0.00')
    assert '3 seeds' in page
