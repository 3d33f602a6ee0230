"""Runs against an endpoint that takes a second for every answer: the time is that of the longest chain of answers."""

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


def conversations(spans):
    """Return the seconds that each conversation in a log waited, where a request needs the answer to the one before."""
    waited = {}
    for start, end, body in sorted(spans, key=lambda span: span[0]):
        before = waited.pop(str(body['messages'][:-2]), 0.0)
        waited[str(body['messages'])] = before + end - start
    return list(waited.values())


def test_an_iteration_waits_for_its_longest_chain_of_answers_only(tmp_path, monkeypatch):
    """The same iteration without the delay says how long the local models take on this machine, under its load."""
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
    _, fast, slow = (row['time/rollout'] + row['time/judge'] for row in read_jsonl(tmp_path / 'metrics.jsonl'))
    spans = server.spans[begun[2]:]
    assert len(spans) > 3.9 * EPISODES  # two of the partner, the judge and the judge of the process; equal ones are asked once
    chain = max(conversations(spans)) + 2
    assert 4 <= chain < 4.5
    assert slow < OVER * chain + fast, (slow, fast, chain)
    assert server.peak == EPISODES


def test_an_evaluation_at_endpoints_takes_as_long_as_its_longest_chain_of_answers(tmp_path, monkeypatch):
    """Conditions and orders of speaking are eight episodes each, and all are played at the same time."""
    monkeypatch.setenv('OPENAI_API_KEY', 'key')
    with serve(answer, delay=1.0) as server:
        config = overlap_config(server)
        config.actor.model = config.partner.model
        config.evaluation.update(episodes=EPISODES // 4, conditions=('none', f'adviser@{server.url}'))
        config.reward.process, config.process.model = 'none', ''
        evaluate.run(config, tmp_path)
    spent = max(end for _, end, _ in server.spans) - min(start for start, _, _ in server.spans)
    # Four turns of actors, two of which need a strategist, and the judge.
    chain = 2 * max(conversations(server.spans)) + 2 + 1
    assert 7 <= chain < 8 and spent < OVER * chain, (spent, chain)
    assert server.peak == EPISODES
