"""A local model as an agent: the ids of its conversations, openings, prefixes and choices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epo_jax.agents.local import LocalAgent
from epo_jax.models import sampling
from epo_jax.models.transformer import Transformer
from epo_jax.testing import dummy_config
from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokens import Tokens, pack

B, V = 3, 61
END, EOS = 50, 51
CHAT = ChatSegments(open=(52, 53), close=(54, 55, 56), between=(57, 58), end=END, stop=(END, EOS))
MODEL = Transformer(dataclasses.replace(dummy_config(V), num_layers=1))
SAMPLING = sampling.SamplingConfig(max_tokens=6, stop=CHAT.stop)
AGENT = LocalAgent(MODEL, CHAT, SAMPLING, capacity=96, chunk=16)
PREFIXES = ((7, 8, 9), (10,), (11, 8))
PREFIX_AGENT = dataclasses.replace(AGENT, prefixes=PREFIXES)


@functools.cache
def make_params():
    """Return random parameters, large enough that the most probable token depends on the context."""
    shapes = jax.eval_shape(MODEL.init_params, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32), shapes)


def make_keys(seed, batch=B):
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(batch))


def words(rng, width, lengths=None):
    """Return ragged rows of random ids that do not occur in the chat template."""
    lengths = rng.integers(0, width + 1, B) if lengths is None else lengths
    return pack([rng.integers(1, 40, n).tolist() for n in lengths], width)


def sampled(memory, b, turn):
    return np.asarray(memory.ids)[b][np.asarray(memory.turn)[b] == turn].tolist()


def all_ids(memory):
    return [np.asarray(memory.ids)[b, :n].tolist() for b, n in enumerate(memory.length)]


def converse(agent, live, seed=0, who=1):
    """Run a conversation of len(live) rounds.

    Returns:
      The memory, and for every round the rows of user messages, cues and replies.
    """
    rng, record = np.random.default_rng(seed), []
    opening = words(rng, 4)
    memory, unread = agent.begin(make_params(), agent.start(B), opening, jnp.ones(B, bool)), opening.rows()
    for t in range(len(live)):
        content, cue = [words(rng, 5), words(rng, 3), words(rng, 1)], words(rng, 2)
        keys = make_keys(100 * seed + t)
        memory, reply = agent.respond(make_params(), memory, content, cue, None, keys, who, jnp.array(live[t]))
        user = [sum(parts, []) for parts in zip(*(part.rows() for part in content))]
        user = [unread[b] + row if live[t][b] else row for b, row in enumerate(user)]
        unread = [[] if live[t][b] else row for b, row in enumerate(unread)]
        record.append((user, cue.rows(), reply.rows()))
    return memory, record


def test_the_session_contains_the_joined_segments():
    live = [(True, False, True), (True, True, True), (True, True, False), (True, True, True)]
    cut_off = complete = as_template = 0
    for seed in range(3):
        memory, record = converse(AGENT, live, seed)
        for b in range(B):
            expected, messages, turn = [], [], 0
            for t, (user, cue, reply) in enumerate(record):
                if not live[t][b]:
                    assert reply[b] == []
                    continue
                own = sampled(memory, b, turn)
                messages += [user[b], cue[b] + reply[b]]
                if turn:
                    if expected[-1] != END:
                        expected.append(END)
                    expected += CHAT.between
                else:
                    expected += CHAT.open
                expected += user[b] + list(CHAT.close) + cue[b] + own
                complete, cut_off = complete + (own[-1] == END), cut_off + (own[-1] not in CHAT.stop)
                assert reply[b] == (own[:-1] if own[-1] in CHAT.stop else own) and len(own) <= SAMPLING.max_tokens
                assert len(own) == SAMPLING.max_tokens or own[-1] in CHAT.stop
                turn += 1
            assert all_ids(memory)[b] == expected
            assert memory.turns[b] == turn and not AGENT.failed(memory)[b]
            if EOS not in expected:  # templates do not contain it
                as_template += 1
                assert CHAT.join(messages) == expected + [END] * (expected[-1] != END)
    assert cut_off and complete and as_template


def test_context_has_no_turn_and_no_log_probability():
    memory, _ = converse(AGENT, [(True,) * B] * 2)
    for b, (ids, turns) in enumerate(zip(all_ids(memory), np.asarray(memory.turn))):
        own = [token for t in range(2) for token in sampled(memory, b, t)]
        assert len(ids) - len(own) == (turns[:len(ids)] == -1).sum()
        assert not np.asarray(memory.logprob)[b][turns == -1].any()


def one_reply(agent, keys, who=1, seed=0, live=(True,) * B, choices=None):
    content = [words(np.random.default_rng(seed), 5, [5, 3, 4]), pack([[]] * B, 3), pack([[]] * B, 1)]
    memory = agent.begin(make_params(), agent.start(B), pack([[]] * B, 4), jnp.ones(B, bool))
    return agent.respond(make_params(), memory, content, pack([[]] * B, 2), choices, keys, who, jnp.array(live))


def test_a_reply_depends_on_its_key_and_agent_but_not_on_other_rows():
    _, base = one_reply(AGENT, make_keys(0))
    assert one_reply(AGENT, make_keys(0))[1].rows() == base.rows()
    assert one_reply(AGENT, make_keys(0), who=2)[1].rows() != base.rows()
    assert one_reply(AGENT, make_keys(1))[1].rows() != base.rows()
    others = jax.random.key_data(make_keys(1)).at[0].set(jax.random.key_data(make_keys(0))[0])
    _, mixed = one_reply(AGENT, jax.random.wrap_key_data(others))
    assert mixed.rows()[0] == base.rows()[0] and mixed.rows()[1:] != base.rows()[1:]
    _, alone = one_reply(AGENT, make_keys(0), live=(False, False, True))
    assert alone.rows() == [[], [], base.rows()[2]]


def test_a_reply_begins_with_a_prefix_and_continues_freely():
    live = [(True, True, False), (True, True, True)]
    memory, record = converse(PREFIX_AGENT, live)
    for b in range(B):
        expected, turn = [], 0
        for t, (user, cue, reply) in enumerate(record):
            if not live[t][b]:
                assert reply[b] == []
                continue
            prefix, = (list(c) for c in PREFIXES if reply[b][:len(c)] == list(c))
            own = sampled(memory, b, turn)
            assert reply[b] == prefix + (own[:-1] if own[-1] in CHAT.stop else own)
            expected += list(CHAT.open) if not turn else [END] * (expected[-1] != END) + list(CHAT.between)
            expected += user[b] + list(CHAT.close) + cue[b] + prefix + own
            turn += 1
        assert all_ids(memory)[b] == expected


def test_prefixes_are_sampled_by_the_probabilities_of_their_first_tokens():
    n, temperature, user = 2000, 2.0, [3, 14, 15, 9]
    prompt = jnp.array([[*CHAT.open, *user, *CHAT.close]])
    hidden, _ = jax.jit(MODEL.apply)({'params': make_params()}, prompt, jnp.arange(prompt.shape[1])[None])
    logits = MODEL.apply({'params': make_params()}, hidden[0, -1], method='logits')
    p = np.exp(np.asarray(logits, np.float64)[[c[0] for c in PREFIXES]] / temperature)
    p /= p.sum()
    assert p.min() > 0.05
    # top_k and top_p must not affect the prefix; max_tokens ends the reply one token after it.
    short = dataclasses.replace(SAMPLING, max_tokens=1, temperature=temperature, top_k=1, top_p=0.5)
    agent = dataclasses.replace(PREFIX_AGENT, sampling=short, capacity=16)
    cue, live = pack([[]] * n, 0), jnp.ones(n, bool)
    memory = agent.begin(make_params(), agent.start(n), pack([user] * n), live)
    _, reply = agent.respond(make_params(), memory, [], cue, None, make_keys(0, n), 0, live)
    share = np.array([(np.asarray(reply.ids)[:, 0] == c[0]).mean() for c in PREFIXES])
    assert share.sum() == 1
    assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / n)).all()  # five standard deviations


def test_prefixes_with_the_same_first_token_raise():
    with pytest.raises(ValueError, match='must differ in their first tokens'):
        dataclasses.replace(AGENT, prefixes=((7, 8), (7, 9)))


def test_a_reply_is_one_of_the_choices_and_ends_with_the_end_of_turn_token():
    choices = Tokens(jnp.array([[[20, 21, 22], [20, 23, 0]], [[0, 0, 0]] * 2, [[EOS, 24, 0], [0, 0, 0]]]),
                     jnp.array([[3, 2], [0, 0], [2, 0]]))
    memory, reply = one_reply(AGENT, make_keys(0), choices=choices)
    assert reply.rows()[0] in ([20, 21, 22], [20, 23]) and reply.rows()[2] == [EOS, 24]
    assert [all_ids(memory)[b][-1] for b in (0, 2)] == [END, END]
    assert sampled(memory, 0, 0) == [*reply.rows()[0], END]
    assert reply.rows()[1] == one_reply(AGENT, make_keys(0))[1].rows()[1]


# Openings


def test_begin_resets_only_the_selected_rows():
    memory, _ = converse(AGENT, [(True,) * B] * 2)
    memory = memory.replace(overflow=jnp.array([True, False, False]))
    before, opening = all_ids(memory), words(np.random.default_rng(5), 4, [4, 2, 3])
    memory = AGENT.begin(make_params(), memory, opening, jnp.array([True, False, True]))
    new = [[*CHAT.open, *row] for row in opening.rows()]
    assert all_ids(memory) == [new[0], before[1], new[2]]
    assert memory.turns.tolist() == [0, 2, 0] and not AGENT.failed(memory).any()
    assert (np.asarray(memory.turn)[[0, 2]] == -1).all() and not np.asarray(memory.logprob)[[0, 2]].any()
    fresh = AGENT.begin(make_params(), AGENT.start(B), opening, jnp.ones(B, bool))
    respond = lambda memory: AGENT.respond(make_params(), memory, [words(np.random.default_rng(6), 5)] * 3, words(
        np.random.default_rng(7), 2), None, make_keys(3), 1, jnp.ones(B, bool))
    (memory, reply), (fresh, expected) = respond(memory), respond(fresh)
    for b in (0, 2):
        assert reply.rows()[b] == expected.rows()[b] and all_ids(memory)[b] == all_ids(fresh)[b]


def test_an_opening_prefilled_per_group_equals_one_prefilled_per_row():
    rows, live = jnp.array([True, True, False, False]), jnp.ones(4, bool)
    opening = pack([[5, 6, 7]] * 2 + [[8]] * 2, 4)
    content = [pack([[9], [10], [11], [12]])]
    sessions = []
    for group in (1, 2):
        memory = AGENT.begin(make_params(), AGENT.start(4), pack([[13, 14]] * 4, 4), live, group)
        memory = AGENT.begin(make_params(), memory, opening, rows, group)  # two of four rows start again
        memory, _ = AGENT.respond(make_params(), memory, content, pack([[]] * 4, 0), None, make_keys(0, 4), 1, live)
        sessions.append(memory)
    assert all_ids(sessions[0]) == all_ids(sessions[1])
    np.testing.assert_allclose(sessions[0].logprob, sessions[1].logprob, atol=1e-5)
    assert [ids[:5] for ids in all_ids(sessions[1])] == [
        [*CHAT.open, 5, 6, 7]] * 2 + [[*CHAT.open, 13, 14, end] for end in (11, 12)]


def test_an_opening_beyond_the_capacity_fails_only_its_row():
    small = dataclasses.replace(AGENT, capacity=8)
    memory = small.begin(make_params(), small.start(B), pack([[1] * 9, [2] * 3, [3]], 9), jnp.ones(B, bool))
    assert small.failed(memory).tolist() == [True, False, False]
    assert small.reasons(memory)[0] == 'the conversation does not fit its capacity of 8 tokens'
    memory = small.begin(make_params(), memory, pack([[4]] * B, 9), jnp.array([True, False, False]))
    assert not small.failed(memory).any() and all_ids(memory)[0] == [*CHAT.open, 4]


def test_a_conversation_beyond_the_capacity_fails_only_its_row():
    memory, _ = converse(AGENT, [(True, True, False)])
    assert not AGENT.failed(memory).any() and AGENT.failed(memory).dtype == bool
    memory = memory.replace(length=memory.length.at[1].set(AGENT.capacity - 6))
    before = all_ids(memory)
    content, cue = [pack([[1]] * B, 5), pack([[2]] * B, 3), pack([[]] * B, 1)], pack([[]] * B, 2)
    live = jnp.array([False, True, True])
    memory, reply = AGENT.respond(make_params(), memory, content, cue, None, make_keys(0), 1, live)
    assert AGENT.failed(memory).tolist() == [False, True, False]
    assert all_ids(memory)[:2] == before[:2] and reply.rows()[:2] == [[], []] and reply.rows()[2]
