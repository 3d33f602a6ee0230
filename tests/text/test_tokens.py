"""Ragged token batches against Python lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.text.tokens import Tokens, TooLongError, concat, keep, pack, repeat

KINDS = ('numpy', 'jax', 'mixed')


def ragged(rng, batch, longest):
    """Random rows, some of them empty."""
    return [rng.integers(1, 1000, rng.integers(0, longest + 1)).tolist() for _ in range(batch)]


def dirty(rng, rows, width):
    """The rows packed, with noise where nothing has a meaning."""
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


def test_pack_of_nothing():
    assert pack([]).rows() == [] and pack([]).ids.shape == (0, 0)
    assert pack([[], []]).rows() == [[], []]


def test_a_row_longer_than_the_width_is_an_error():
    assert pack([[1, 2], [3]], 2).rows() == [[1, 2], [3]]
    with pytest.raises(TooLongError, match='3 tokens.*2'):
        pack([[1], [2, 3, 4]], 2)


def test_repeat_gives_every_row_the_same():
    assert repeat((5, 6, 7), 3).rows() == [[5, 6, 7]] * 3
    assert repeat((), 2).rows() == [[], []]
    assert_kind(repeat((5, 6), 3), 'numpy')


@pytest.mark.parametrize('kind', KINDS)
def test_concat_is_concatenation_of_lists(kind):
    rng = np.random.default_rng(1)
    widths = (4, 1, 0, 6)  # as few shapes as possible: each is a program
    for trial in range(20):
        lists = [ragged(rng, 5, width) for width in widths]
        parts = as_kind([dirty(rng, rows, width) for rows, width in zip(lists, widths)], kind)
        want = [sum(rows, []) for rows in zip(*lists)]
        for width in (None, 11, 15):
            joined = concat(parts, width)
            assert joined.rows() == want
            assert joined.ids.shape == (5, sum(widths) if width is None else width)
            assert_kind(joined, kind)


def test_concat_cuts_to_a_width_into_which_every_row_fits():
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


def test_constant_parts_kept_by_a_traced_mask_can_be_joined():
    @jax.jit
    def join(mask):
        return concat([keep(repeat((1, 2), 3), mask), repeat((3,), 3), keep(repeat((4, 5), 3), ~mask)])

    joined = join(jnp.array([True, False, True]))
    assert joined.rows() == [[1, 2, 3], [3, 4, 5], [1, 2, 3]]
    assert isinstance(join(jnp.array([True] * 3)), Tokens)
