"""The engine: answers do not depend on what else it serves, shared prefixes are read once, and slots are freed."""

import dataclasses
import queue
import time

import jax
import numpy as np
import pytest

from epo_jax import testing
from epo_jax.models import families, sampling
from epo_jax.models.sampling import SamplingConfig
from epo_jax.serve import slots as programs
from epo_jax.serve.engine import Engine, Options, size_for
from epo_jax.serve.guides import Choices
from epo_jax.serve.prefixes import Slot, common, find_place
from epo_jax.serve.tickets import Busy, RequestError, Sampling, Ticket
from epo_jax.text.tokens import pack

CONFIG = dataclasses.replace(testing.dummy_config(), num_layers=1)
MODEL = families.decoder(CONFIG)
END = 258
GREEDY = Sampling(max_tokens=12, ends=frozenset({END}), temperature=0.0)
OPTIONS = Options(slots=4, capacity=256, waiting=64, read=32, chunk=32, step=160)  # the cache grows once
extend = jax.jit(sampling.extend, static_argnums=(0, 4))
generate = jax.jit(sampling.generate, static_argnums=(0, 5))


@pytest.fixture(scope='module')
def params():
    return jax.tree.map(lambda x: 3 * x, testing.dummy_params(CONFIG, stacked=False))


@pytest.fixture
def engine(params):
    engine = Engine(MODEL, params, OPTIONS)
    yield engine
    engine.close()


class Answer:
    """Collects the pieces of one request."""

    def __init__(self, engine, ids, sampling):
        self.pieces, self._done = [], queue.Queue()
        self.ticket = engine.submit(ids, sampling, self._deliver)

    def _deliver(self, piece):
        self.pieces.append(piece)
        if piece.finish:
            self._done.put(None)

    def wait(self):
        self._done.get(timeout=120)
        return self

    @property
    def ids(self):
        return [i for piece in self.pieces for i in piece.ids]

    @property
    def logprobs(self):
        return [x for piece in self.pieces for x in piece.logprobs]


def prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 250, n).tolist() for n in lengths]


def alone(params, ids, settings, key=(0, 0)):
    """Return the ids and log-probabilities of `sampling.generate` for one prompt."""
    config = SamplingConfig(settings.max_tokens, tuple(settings.ends), banned=tuple(settings.banned),
                            temperature=settings.temperature, top_p=settings.top_p, min_tokens=settings.min_tokens)
    session = extend(MODEL, params, sampling.open_session(MODEL, 1, 256), pack([ids], 256), 32)
    keys = jax.random.wrap_key_data(np.array([key], np.uint32))
    session, _ = generate(MODEL, params, session, keys, np.array([True]), config)
    said = slice(len(ids), int(session.length[0]))
    return session.ids[0, said].tolist(), np.asarray(session.logprob)[0, said]


def test_answers_equal_those_of_generate_alone(engine, params):
    """Twelve requests with different lengths and settings share four slots, which are refilled."""
    settings = [GREEDY,
                dataclasses.replace(GREEDY, temperature=1.2, top_p=0.6, key=(0, 5), min_tokens=3, max_tokens=5,
                                    banned=frozenset(range(100)))]
    asked = [(ids, settings[i % 2]) for i, ids in enumerate(prompts(5, 1, 140, 33, 64, 200, 17, 96, 31, 32, 128, 2))]
    answers = [Answer(engine, *question) for question in asked]
    for answer, (ids, s) in zip(answers, asked):
        expected, logprobs = alone(params, ids, s, s.key)
        assert answer.wait().ids == expected
        np.testing.assert_allclose(answer.logprobs, logprobs, atol=1e-4)
        assert answer.pieces[-1].finish == ('stop' if expected[-1] == END else 'length')
    assert engine.counts['finished'] == 12
    assert engine.counts['steps'] < engine.counts['tokens_sampled']  # several at a time


def test_a_conversation_is_read_once(engine):
    """Twenty turns: every token is read when it is new, although each prompt holds the whole conversation."""
    ids, lengths = [], []
    for new in prompts(*[7] * 20):
        ids = ids + new
        answer = Answer(engine, ids, dataclasses.replace(GREEDY, max_tokens=4)).wait()
        ids, lengths = ids + answer.ids, lengths + [len(answer.ids)]
    assert engine.counts['tokens_read'] == 7 * 20
    assert engine.counts['tokens_reused'] == 7 * sum(range(20)) + sum(sum(lengths[:t]) for t in range(20))


def test_answers_to_the_same_prompt_share_its_reading(engine, params):
    prompt, = prompts(150)
    asked = [dataclasses.replace(GREEDY, temperature=1.0, key=(0, n)) for n in range(6)]
    answers = [Answer(engine, prompt, s) for s in asked]
    for s, answer in zip(asked, answers):
        assert answer.wait().ids == alone(params, prompt, s, s.key)[0]
    assert engine.counts['tokens_read'] == len(prompt)


def test_a_branch_leaves_the_conversation_that_it_leaves(engine, params):
    start, one, other = prompts(80, 9, 9)
    first = Answer(engine, start + one, GREEDY).wait()
    branch = Answer(engine, start + other, GREEDY).wait()
    again = Answer(engine, start + one + first.ids + other, GREEDY).wait()
    assert branch.ticket.reused == 80 and again.ticket.read == 9
    assert branch.ids == alone(params, start + other, GREEDY)[0]
    assert again.ids == alone(params, start + one + first.ids + other, GREEDY)[0]


def test_a_cancelled_request_frees_its_slot(engine, params):
    endless = dataclasses.replace(GREEDY, max_tokens=240, min_tokens=240)
    stuck = [Answer(engine, ids, endless) for ids in prompts(9, 9, 9, 9, 9)]
    for answer in stuck:
        answer.ticket.cancel()
    prompt, = prompts(20, seed=1)
    assert Answer(engine, prompt, GREEDY).wait().ids == alone(params, prompt, GREEDY)[0]
    assert all(sum(len(piece.ids) for piece in answer.pieces) < 240 for answer in stuck)
    assert engine.counts['cancelled'] == 5 and engine.load()['busy'] == 0


def test_only_choices_are_said(engine):
    choices = ((65, 66), (65, 67, 68), (70,))
    seen = set()
    for seed in range(12):
        settings = dataclasses.replace(GREEDY, temperature=3.0, key=(0, seed), guide=Choices(choices, GREEDY.ends))
        ids = Answer(engine, [10, 11, 12], settings).wait().ids
        assert ids[-1] == END and tuple(ids[:-1]) in choices
        seen.add(tuple(ids[:-1]))
    assert len(seen) > 1
    free = Answer(engine, [10, 11, 12], GREEDY).wait().ids  # the slot is not restricted any longer
    assert tuple(free[:-1]) not in choices


def test_most_probable_tokens(engine):
    answer = Answer(engine, [5, 6, 7], dataclasses.replace(GREEDY, top=True)).wait()
    tops = [top for piece in answer.pieces for top in piece.tops]
    assert len(tops) == len(answer.ids) and all(len(top) == programs.TOP for top in tops)
    for token, logprob, top in zip(answer.ids, answer.logprobs, tops):
        assert top[0][0] == token and top[0][1] == pytest.approx(logprob, abs=1e-5)
        assert [x for _, x in top] == sorted((x for _, x in top), reverse=True)


def test_what_cannot_be_served_is_refused(engine):
    for ids, words in (([], 'empty'), ([259], 'outside'), ([3] * 256, 'shorten')):
        with pytest.raises(RequestError, match=words):
            engine.submit(ids, GREEDY, print)
    long = Answer(engine, [3] * 252, dataclasses.replace(GREEDY, max_tokens=100, min_tokens=100)).wait()
    assert len(long.ids) == 4 and long.pieces[-1].finish == 'length'


def test_the_queue_is_bounded_and_closing_ends_all(params):
    engine = Engine(MODEL, params, dataclasses.replace(OPTIONS, slots=1, waiting=2))
    endless = dataclasses.replace(GREEDY, max_tokens=250, min_tokens=250)
    answers = [Answer(engine, [3, 4], endless)]
    while engine.load()['busy'] == 0:
        time.sleep(0.01)
    answers += [Answer(engine, [3, 4], endless) for _ in range(2)]
    with pytest.raises(Busy, match='wait'):
        engine.submit([3], GREEDY, print)
    engine.close()
    for answer in answers:
        last = answer.wait().pieces[-1]
        assert last.finish == 'length' or 'stopping' in last.error
    with pytest.raises(Busy):
        engine.submit([3], GREEDY, print)


def test_logits_that_are_not_finite_are_an_error(params):
    engine = Engine(MODEL, jax.tree.map(lambda x: x * np.nan, params), OPTIONS)
    last = Answer(engine, [3, 4], GREEDY).wait().pieces[-1]
    assert last.finish == 'error' and 'not finite' in last.error
    engine.close()


def test_a_failure_of_the_device_reaches_every_request(params, monkeypatch):
    def fail(*args):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(programs, 'decode_row', fail)
    engine = Engine(MODEL, params, OPTIONS)
    last = Answer(engine, [3, 4], GREEDY).wait().pieces[-1]
    assert last.finish == 'error' and 'out of memory' in last.error
    with pytest.raises(Busy, match='out of memory'):
        while True:
            engine.submit([3], GREEDY, lambda piece: None)
    engine.close()


def test_top_k_keeps_the_most_probable():
    rng = np.random.default_rng(0)
    weights = np.exp(rng.normal(size=(3, 50)) * 3).astype(np.float32)
    weights /= weights.max(axis=1, keepdims=True)
    kept = np.asarray(programs._largest(weights, np.array([1, 7, 0]))) > 0
    assert kept.sum(axis=1).tolist() == [1, 7, 50]
    assert weights[1][kept[1]].min() > weights[1][~kept[1]].max()


def test_sizes_of_the_cache():
    sizes = sorted({size_for(n, 5000, 128) for n in range(1, 5001)})
    assert sizes[:5] == [128, 256, 384, 512, 768] and sizes[-1] == 5000
    assert all(size_for(n, 5000, 128) >= n for n in range(5001)) and len(sizes) < 14


def test_common_prefix():
    assert common([1, 2, 3], [1, 2, 4]) == 2 and common([], [1]) == 0 and common([1, 2], [1, 2, 3]) == 2
    for at in (0, 1, 63, 64, 65, 127, 128, 199):
        assert common([7] * at + [1] * (200 - at), [7] * 200) == at


def test_a_prompt_gets_the_slot_where_least_is_forgotten():
    def place(ids, *conversations, busy=()):
        slots = [Slot(i, list(said), Ticket([], GREEDY, print) if i in busy else None, float(i))
                 for i, said in enumerate(conversations)]
        found = find_place(slots, ids)
        return found and (found.slot.number, found.source.number, found.shared, found.lost)

    a, b, c = [1] * 40, [2] * 40, [3] * 20
    assert place(a + c, b, a) == (1, 1, 40, 0)                 # continued
    assert place(a, b, a + c, []) == (2, 1, 40, 0)             # both branches are kept while a slot is empty
    assert place(a, b, a + c) == (1, 1, 40, 20)                # asked again: the answer is forgotten, and not b
    assert place(a + c, c, a + b) == (0, 1, 40, 20)            # less is forgotten in the older slot
    assert place(c, b, a) == (0, 0, 0, 40)                     # nothing is shared: the older one
    assert place(a[:9] + c, b, a) == (0, 0, 0, 40)             # sharing a few tokens is not worth a copy
    assert place(a + c, b, a, busy=[1]) == (0, 1, 40, 40)      # copied from one that is in use
    assert place(a, b, c, busy=[0, 1]) is None


def test_more_conversations_than_slots(engine, params):
    """Five conversations take turns in four slots: what was forgotten is read again, and counted."""
    history, asked = prompts(*[30] * 5), 0
    for _ in range(2):
        for i, ids in enumerate(history):
            asked += len(ids)
            answer = Answer(engine, ids, GREEDY).wait()
            assert answer.ids == alone(params, ids, GREEDY)[0]
            history[i] = ids + answer.ids + [9]
    counts, new = engine.counts, 5 * 30 + 5
    assert counts['tokens_read'] + counts['tokens_reused'] == asked
    assert new < counts['tokens_read'] <= new + counts['tokens_forgotten']


def test_questions_that_are_asked_again_are_not_read_again(engine):
    """As many conversations as slots, each of which is asked again from its beginning."""
    asked = prompts(*[50] * 4)
    for _ in range(3):
        answers = [Answer(engine, ids, GREEDY) for ids in asked]
        said = [answer.wait().ids for answer in answers]
    assert engine.counts['tokens_read'] == 4 * 50 and engine.counts['tokens_reused'] == 2 * 4 * 50
    assert engine.counts['tokens_forgotten'] == 2 * sum(map(len, said))
