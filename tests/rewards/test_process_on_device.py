"""The judge within the compiled iteration says what the judge of a host loop says of the same episodes."""

import dataclasses

import jax
import numpy as np
import pytest

from epo_jax import compiled, testing
from epo_jax.agents.base import Player, Seat
from epo_jax.agents.scripted import Echo
from epo_jax.envs.sotopia.dialogue import Sotopia
from epo_jax.envs.sotopia.profiles import load_scenarios
from epo_jax.envs.sotopia.tokens import TokenSotopia
from epo_jax.models.transformer import Transformer
from epo_jax.rewards import process
from epo_jax.rewards.judge import Judge
from epo_jax.rewards.reading import readings
from epo_jax.rollout import Archive, Table
from epo_jax.text.chat import chat_segments
from epo_jax.text.tokenizer import encode
from epo_jax.text.tokens import Tokens, pack

WIDTH, ACTIONS = 1024, 5  # of one seat three turns, of the other two
SAID = (['Hello."', 'Hi."', 'Forty dollars?"', 'Fifty."', 'Deal."'], ['Good day."', 'No."', 'Bye."'])
PLANS = (['Be kind.', 'Wait.', 'Ask for less.', 'Hold on.', 'Agree.'], ['Greet.', 'Refuse.', 'Go.'])


@pytest.fixture(scope='module')
def played():
    """(judge, table, queue, archive, readings): two dialogues, the second one shorter and cut off; the judge of three rows."""
    tokenizer, model = testing.byte_tokenizer(), testing.dummy_config()
    params = testing.dummy_params(model, stacked=False)
    params['final_norm']['scale'] = params['final_norm']['scale'] * 12  # opinions that differ
    judge = Judge(Transformer(model), params, tokenizer, chat_segments(tokenizer), 1536, batch=3, chunk=256)
    env = TokenSotopia(Sotopia(ACTIONS, 9, ('speak',), True, True), tokenizer, WIDTH)
    player = Player(Echo(8), None, tokenizer)
    table = Table(env, (Seat(player, player, trained=True),) * 2)
    scenarios = load_scenarios('')[:2]
    queue = env.encode(scenarios)
    state, _ = env.deal(env.start(2), queue, np.arange(2), np.ones(2, bool))
    for a in range(ACTIONS):
        live = np.array([a < len(said) for said in SAID])
        message = pack([encode(tokenizer, said[a]) if on else [] for said, on in zip(SAID, live)], 32)
        state, _ = env.step(state, a % 2, message, live)
    plans = [pack([encode(tokenizer, plan) for plan in rows] + [[]] * (ACTIONS - len(rows)), 16) for rows in PLANS]
    plans = Tokens(*(np.stack([getattr(p, name) for p in plans]) for name in ('ids', 'length')))
    archive = Archive(
        env=state, conversations=(None, None), cause=np.array([0, 1]), actions=np.array([5, 3]),
        reward=np.zeros((2, 2), np.float32), strategies=plans, messages=plans)
    told = readings(table, archive, env.accounts(scenarios, state, None))
    texts = [dataclasses.replace(reading, score=None) for reading in told]  # goals with a rule are judged, too
    assert texts[1].strategies == ('Greet.', 'Go.') and not texts[1].complete
    return judge, table, jax.tree.map(np.asarray, queue), archive, texts


@pytest.mark.parametrize('method', ['potential', 'critical', 'none'])
def test_both_judges_agree(played, method):
    judge, table, queue, archive, texts = played
    settings = compiled.Settings(None, None, 2, method, 'judge', None)
    got = jax.jit(compiled.assess, static_argnums=0)(
        settings, table, judge, queue, jax.tree.map(np.asarray, archive))
    want = process.assess(judge, texts, 3, method)
    np.testing.assert_array_equal(got.valid, want.valid)
    np.testing.assert_array_equal(got.outcome_valid, want.outcome_valid)
    np.testing.assert_allclose(got.outcome, want.outcome, atol=2e-5)
    np.testing.assert_allclose(got.process, want.process, atol=2e-5)
    if method != 'none':
        numbers = np.asarray(getattr(got, method))
        for row, note in zip(numbers, want.note):
            np.testing.assert_allclose(row[np.isfinite(row)], note[method], atol=2e-5)
        assert np.ptp(numbers[np.isfinite(numbers)]) > 1e-3


def test_a_message_that_is_too_long_has_no_verdict(played):
    judge, table, queue, archive, texts = played
    short = judge.replace(capacity=max(len(judge.encode(text.brief)) for text in texts) + 200)
    settings = compiled.Settings(None, None, 2, 'critical', 'environment', None)
    got = jax.jit(compiled.assess, static_argnums=0)(settings, table, short, queue, archive)
    assert not np.asarray(got.valid).any() and np.isnan(got.critical).all()
    assert np.asarray(got.outcome_valid).any()
