"""Operations on ragged token batches against the same operations on Python lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.text.tokens import Tokens, TooLongError, concat, keep, pack, repeat

KINDS = ('numpy', 'jax', 'mixed')


def ragged(rng, batch, longest):
    """Return random rows of random length, some of them empty."""
    return [rng.integers(1, 1000, rng.integers(0, longest + 1)).tolist() for _ in range(batch)]


def pack_with_noise(rng, rows, width):
    """Pack rows, with random ids in the padding."""
    tokens = pack(rows, width)
    noise = rng.integers(1, 1000, tokens.ids.shape)
    return tokens.replace(ids=np.where(np.arange(width) < tokens.length[:, None], tokens.ids, noise).astype(np.int32))


def as_kind(parts, kind):
    on_device = {'numpy': lambda i: False, 'jax': lambda i: True, 'mixed': lambda i: i % 2}[kind]
    return [jax.tree.map(jnp.asarray, part) if on_device(i) else part for i, part in enumerate(parts)]


def assert_kind(tokens, kind):
    expected = np.ndarray if kind == 'numpy' else jax.Array
    for leaf in (tokens.ids, tokens.length):
        assert isinstance(leaf, expected) and leaf.dtype == np.int32


def test_pack_and_rows_are_inverse():
    rng = np.random.default_rng(0)
    for longest in (0, 1, 7):
        rows = ragged(rng, 6, longest)
        tokens = pack(rows)
        assert tokens.ids.shape == (6, max(map(len, rows))) and tokens.rows() == rows
        assert pack(rows, 9).ids.shape == (6, 9) and pack(rows, 9).rows() == rows
        assert jax.tree.map(jnp.asarray, tokens).rows() == rows
        assert_kind(tokens, 'numpy')


def test_pack_without_rows_or_ids():
    assert pack([]).rows() == [] and pack([]).ids.shape == (0, 0)
    assert pack([[], []]).rows() == [[], []]


def test_a_row_longer_than_the_width_raises():
    assert pack([[1, 2], [3]], 2).rows() == [[1, 2], [3]]
    with pytest.raises(TooLongError, match='3 tokens does not fit into 2 tokens'):
        pack([[1], [2, 3, 4]], 2)


def test_repeat_returns_equal_rows():
    assert repeat((5, 6, 7), 3).rows() == [[5, 6, 7]] * 3
    assert repeat((), 2).rows() == [[], []]
    assert_kind(repeat((5, 6), 3), 'numpy')


@pytest.mark.parametrize('kind', KINDS)
def test_concat_equals_concatenation_of_lists(kind):
    rng = np.random.default_rng(1)
    widths = (4, 1, 0, 6)  # fixed, because every shape is compiled separately
    for trial in range(20):
        lists = [ragged(rng, 5, width) for width in widths]
        parts = as_kind([pack_with_noise(rng, rows, width) for rows, width in zip(lists, widths)], kind)
        expected = [sum(rows, []) for rows in zip(*lists)]
        for width in (None, 11, 15):
            joined = concat(parts, width)
            assert joined.rows() == expected
            assert joined.ids.shape == (5, sum(widths) if width is None else width)
            assert_kind(joined, kind)


def test_concat_to_a_smaller_width():
    parts = [pack([[1, 2, 3], [], [4]]), pack([[5], [6, 7], [8, 9]])]
    for kind in KINDS:
        joined = concat(as_kind(parts, kind), 4)
        assert joined.ids.shape == (3, 4) and joined.rows() == [[1, 2, 3, 5], [6, 7], [4, 8, 9]]


def test_keep_empties_rows():
    rows = [[1, 2], [3], [], [4, 5, 6]]
    mask = np.array([True, False, True, False])
    for kind in ('numpy', 'jax'):
        tokens, = as_kind([pack(rows)], kind)
        assert keep(tokens, mask).rows() == [[1, 2], [], [], []]
        assert keep(tokens, True).rows() == rows and keep(tokens, False).rows() == [[]] * 4
        assert_kind(keep(tokens, mask), kind)


def test_concat_of_constants_under_a_traced_mask():
    @jax.jit
    def join(mask):
        return concat([keep(repeat((1, 2), 3), mask), repeat((3,), 3), keep(repeat((4, 5), 3), ~mask)])

    joined = join(jnp.array([True, False, True]))
    assert joined.rows() == [[1, 2, 3], [3, 4, 5], [1, 2, 3]]
    assert isinstance(join(jnp.array([True] * 3)), Tokens)
