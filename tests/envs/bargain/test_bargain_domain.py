"""The vocabulary of bargaining, and its domains."""

import pytest

from epo_jax.config import ConfigError
from epo_jax.defaults import default_config, validate
from epo_jax.envs.bargain import language
from epo_jax.envs.bargain.game import Bargain
from epo_jax.envs.base import load_domain
from epo_jax.testing import byte_tokenizer
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import pack


def test_every_word_is_one_token_and_decodes_to_itself():
    tokenizer = language.tokenizer()
    words = [word for word in language.WORDS if word not in (language.END, language.UNKNOWN)]
    assert text.encode(tokenizer, ' '.join(words)) == [language.IDS[word] for word in words]
    assert text.decode(tokenizer, [language.IDS[word] for word in words]) == ' '.join(words)
    assert tokenizer.get_vocab() == language.IDS
    assert tokenizer.eos_token_id == language.chat().end
    assert text.decode(tokenizer, [language.IDS['ask:7'], language.chat().end]) == 'ask:7'


def test_intents_are_read_from_the_first_word():
    rows = [[i] for i in language.INTENT_IDS] + [[language.IDS['walk'], 0], [language.IDS['turn:1']], []]
    assert language.intent(pack(rows, 2)).tolist() == [
        *range(len(language.INTENTS)), language.INTENTS.index('walk'), -1, -1]


def test_the_small_model_has_a_row_for_every_word():
    assert language.model().vocab_size == len(language.WORDS)


@pytest.mark.parametrize('name, opponent, seats', [('bargain', 'family', 1), ('bargain_selfplay', 'seat', 2)])
def test_a_configuration_selects_opponent_and_seats(name, opponent, seats):
    config, domain = default_config(name), load_domain(name)
    model, tokenizer, _ = domain.scratch_model()
    env = domain.device_environment(config.environment, tokenizer, 6)
    assert env == Bargain(opponent, 4) and env.num_seats == domain.seats == seats == len(config.seats)
    scenarios = domain.scenarios('', config.environment)
    assert {s.split for s in scenarios} == {'train', 'held_out'}
    assert all((s.opponent is None) == (opponent == 'seat') for s in scenarios)


def test_impossible_settings_are_refused():
    domain = load_domain('bargain')
    config = default_config('bargain')
    with pytest.raises(ValueError, match='its own vocabulary'):
        domain.device_environment(config.environment, byte_tokenizer(), 6)
    with pytest.raises(ValueError, match='view_tokens is 5; the first observation needs 6'):
        domain.device_environment(config.environment, language.tokenizer(), 5)
    with pytest.raises(ValueError, match='generates its own scenarios'):
        domain.scenarios('somewhere', config.environment)
    config.environment.rounds = 0
    with pytest.raises(ConfigError, match='environment.rounds must be at least 1 and at most 9'):
        validate(config)
