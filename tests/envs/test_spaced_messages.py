"""An environment in text with a chat template that puts a space before messages: what is read equals transformers' ids."""

import pathlib
import sys

import numpy as np
import pytest

from epo_jax.agents.base import Player, Seat
from epo_jax.agents.local import LocalAgent
from epo_jax.envs.base import Observation, TextEnvironment, TextStep
from epo_jax.envs.host import HostEnvironment
from epo_jax.models.sampling import SamplingConfig
from epo_jax.text.chat import chat_segments
from epo_jax.text.tokenizer import load_tokenizer

sys.path.append(str(pathlib.Path(__file__).parent.parent / 'text'))
from sentencepiece_like import CONTROL, FORMS, TEMPLATES, write_folder  # noqa: E402


class Talk(TextEnvironment):
    """Two seats read their own messages and those of the other."""

    num_seats, max_turns = 2, 4

    def reset(self, scenario, advised):
        return (), tuple(Observation('You are first.', 'Hello to the actor.') for _ in range(2))

    def step(self, state, seat, message):
        own = Observation('', 'You said: Yes.')
        other = Observation('They said: Yes.', '\nTwelve or eleven?')
        return state, TextStep((own, other) if seat == 0 else (other, own), False)

    def cues(self, state, seat):
        return Observation('', 'Shall')

    def choices(self, state, seat):
        return ('Yes', 'No') if seat else ()


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', TEMPLATES)
def test_what_is_read_equals_the_template(name, form, tmp_path):
    tokenizer = load_tokenizer(write_folder(tmp_path, form, TEMPLATES[name], CONTROL.get(name, ())))
    chat = chat_segments(tokenizer)
    agent = LocalAgent(None, chat, SamplingConfig(8, chat.stop), 512)
    player = Player(agent, None, tokenizer)
    env = HostEnvironment(Talk(), (Seat(player, player),) * 2, 64)
    rows = np.ones(1, bool)
    state, opened = env.reset(env.start(1), ['scenario'], np.zeros(1, int), rows)
    state, step = env.step(state, 0, opened[0].actor, rows)
    first = step.observations
    state, step = env.step(state, 1, opened[0].actor, rows)
    second = step.observations
    read = lambda *observations: [i for tokens in observations for i in tokens.rows()[0]]
    # Seat 0 has read its opening before it acted; seat 1 reads opening and first step in one message.
    strategist = [read(opened[0].strategist), read(first[0].strategist, second[0].strategist)]
    assert strategist == [chat.encode(tokenizer, [text])[0] for text in ('You are first.', 'They said: Yes.')]
    actor = read(first[0].actor, second[0].actor)
    assert actor == chat.encode(tokenizer, ['You said: Yes.\nTwelve or eleven?'])[0]
    assert read(opened[1].actor, first[1].actor) == chat.encode(
        tokenizer, ['Hello to the actor.\nTwelve or eleven?'])[0]
    cue, choices = env.cues(state, 1).actor.rows()[0], env.choices(state, 1)
    assert cue == chat.encode(tokenizer, ['x', 'Shall'])[1]
    assert cue + choices.ids[0, 0, :choices.length[0, 0]].tolist() == chat.encode(tokenizer, ['x', 'ShallYes'])[1]
