"""A run of two processes asks endpoints every question once, and gets what a run of one process gets."""

import collections

from fake_endpoint import serve
import pytest
from test_hosts import assert_alike, finish, free_port, read_metrics, start
from test_remote_runs import answer

from epo_jax.runtime.files import read_jsonl

pytestmark = pytest.mark.slow

FLAGS = (
    '--config=configs/sotopia.py:tiny', '--config.mesh=1,2,1', '--config.iterations=2', "--config.seats=('policy','none')",
    '--config.reward.process=critical', '--config.environment.max_turns=2', '--config.strategist.max_tokens=4',
    '--config.actor.max_tokens=4', '--config.learner.length_bucket=128', '--config.evaluation.episodes=2',
    "--config.evaluation.conditions=('none','policy')", '--config.evaluation.bootstrap=20')


def test_two_processes_ask_every_question_once(tmp_path, monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', 'key')
    asked = {}
    with serve(answer) as server:
        models = tuple(f'--config.{role}.model=m@{server.url}' for role in ('partner', 'judge', 'process'))
        finish(start(tmp_path / 'one', 2, *FLAGS, *models))
        asked['one'] = collections.Counter(server.requests)
        server.requests.clear()
        port = free_port()
        finish(*(start(tmp_path / 'two', 1, *FLAGS, *models, f'--hosts=127.0.0.1:{port},2,{number}')
                 for number in range(2)))
        asked['two'] = collections.Counter(server.requests)
    assert set(asked['one'].values()) == set(asked['two'].values()) == {1}
    assert asked['one'] == asked['two']
    assert len(list((tmp_path / 'two' / 'answers').glob('answers*.sqlite'))) == 2  # both processes asked
    for name in ('iteration_00001.jsonl', 'iteration_00002.jsonl', 'evaluation.jsonl'):
        assert_alike(*(read_jsonl(tmp_path / run / 'episodes' / name) for run in ('one', 'two')))
    for one, two in zip(*(read_metrics(tmp_path / run) for run in ('one', 'two')), strict=True):
        assert two['process/missing'] == one['process/missing'] == 0
        assert two['outcome/mean'] == pytest.approx(one['outcome/mean'])
