"""Runs against an endpoint that takes a second for every answer: the time is that of the longest chain of answers.

The same work without the delay says how much of the time this machine needs under its present load.
"""

from fake_endpoint import serve
import pytest
from test_remote_runs import answer, remote_config

from epo_jax import evaluate, experiment
from epo_jax.runtime.files import read_jsonl

pytestmark = pytest.mark.slow

EPISODES = 32
OVER = 1.3  # times the longest chain of answers


def overlap_config(server):
    config = remote_config(server)
    config.rollout.update(episodes=EPISODES, batch=EPISODES)
    config.remote.update(concurrency=2 * EPISODES, retries=0)
    return config


def longest_conversation(spans):
    """Return the seconds for which a conversation in a log waited, at most; a request needs the answer to the one before."""
    waited = {}
    for start, end, body in sorted(spans, key=lambda span: span[0]):
        waited[str(body['messages'])] = waited.get(str(body['messages'][:-2]), 0.0) + end - start
    return max(waited.values())


def test_an_iteration_waits_for_its_longest_chain_of_answers_only(tmp_path, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'key')
    begun = [0]
    with serve(answer) as server:
        write = experiment.write_episodes

        def write_episodes(*args):
            begun.append(len(server.spans))
            server.delay = float(len(begun) == 3)  # in the last one of three iterations
            return write(*args)

        monkeypatch.setattr(experiment, 'write_episodes', write_episodes)
        config = overlap_config(server)
        config.iterations, config.evaluation.episodes = 3, 0
        experiment.run(config, tmp_path)
    rows = read_jsonl(tmp_path / 'metrics.jsonl')
    _, fast, slow = (row['time/rollout'] + row['time/judge'] for row in rows)
    spans = server.spans[begun[2]:]
    assert len(spans) == sum(rows[2][f'requests/{role}/requests'] - rows[2][f'requests/{role}/cached']
                             for role in ('partner', 'judge', 'process')) > 3 * EPISODES
    chain = longest_conversation(spans) + 2  # two answers of the partner, the judge, and the judge of the process
    assert 4 <= chain and slow < OVER * chain + fast, (slow, fast, chain)
    assert server.peak == EPISODES


def test_an_evaluation_at_endpoints_takes_as_long_as_its_longest_chain_of_answers(tmp_path, monkeypatch):
    """Two conditions and two orders of speaking are eight episodes each, and all of them are played at the same time."""
    monkeypatch.setenv('OPENAI_API_KEY', 'key')
    seconds = []
    with serve(answer) as server:
        for delay in (0.0, 1.0):
            server.delay, begun = delay, len(server.spans)
            config = overlap_config(server)
            config.seed = int(delay)
            config.actor.model, config.process.model = config.partner.model, ''
            config.evaluation.update(episodes=EPISODES // 4, conditions=('none', f'adviser@{server.url}'))
            config.reward.process = 'none'
            evaluate.run(config, tmp_path / str(delay))
            spans = server.spans[begun:]
            seconds.append(max(end for _, end, _ in spans) - min(start for start, _, _ in spans))
    # Two turns of both actors, one of which asks for a strategy in each of its turns, and the judge.
    chain = 3 * longest_conversation(spans) + 1
    assert 7 <= chain and seconds[1] < OVER * chain + seconds[0], (seconds, chain)
    assert server.peak > EPISODES // 2
