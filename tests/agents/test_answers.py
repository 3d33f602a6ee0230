"""The record of answers: what is kept, across processes, kills and damage."""

import os
import sqlite3
import subprocess
import sys
import threading

import pytest

from epo_jax.agents.answers import Answers, AnswersError, Entry

REQUEST = {'model': 'm', 'messages': [['user', 'hi \ud83d "\u00e9']], 'seed': 1}


def test_an_entry_is_found_by_its_request_alone(tmp_path):
    entry = Entry('{"choices": []}', None, 3, 4, 0.5)
    with Answers(tmp_path / 'a') as answers:
        assert answers.get(REQUEST) is None
        answers.put('judge', REQUEST, entry)
        answers.put('actor', REQUEST | {'seed': 2}, Entry(None, 'too long'))
        assert answers.get(dict(reversed(REQUEST.items()))) == entry  # the order of the fields does not matter
        assert answers.spent() == {'judge': 0.5, 'actor': 0.0}
    with Answers(tmp_path / 'a') as answers:
        assert answers.get(REQUEST) == entry and answers.get(REQUEST | {'seed': 2}).refusal == 'too long'
        assert answers.get(REQUEST | {'seed': '1'}) is None
    assert os.listdir(tmp_path / 'a') == ['answers.sqlite']


@pytest.mark.parametrize('path', ['a', 'a.sqlite', 'a[1]?#.sqlite'])
def test_every_process_writes_a_file_and_reads_those_of_all(tmp_path, path):
    with Answers(tmp_path / path, 0) as first, Answers(tmp_path / path, 11) as second:
        first.put('actor', {'n': 0}, Entry('0', dollars=1.0))
        second.put('actor', {'n': 1}, Entry('1', dollars=2.0))
        for answers in (first, second):
            assert [answers.get({'n': n}).response for n in range(2)] == ['0', '1']
            assert answers.spent() == {'actor': 3.0}
    with Answers(tmp_path / path, replay=True) as answers:  # another number of processes
        assert answers.get({'n': 1}).response == '1'
    files = sorted(file.name for file in tmp_path.rglob('*.sqlite'))
    assert files == (['answers.11.sqlite', 'answers.sqlite'] if path == 'a' else [
        path.replace('.sqlite', '.11.sqlite'), path])


def test_threads_share_a_record(tmp_path):
    with Answers(tmp_path) as answers:
        def work(i):
            for n in range(20):
                answers.put('actor', {'n': n % 5, 'i': i}, Entry(f'{n}', dollars=0.25))
                assert answers.get({'n': n % 5, 'i': i}).response == f'{n}'
        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert answers.spent() == {'actor': 6 * 5 * 0.25}


def test_what_was_put_survives_a_kill(tmp_path):
    program = ('import os, sys\nfrom epo_jax.agents.answers import Answers, Entry\n'
               'answers = Answers(sys.argv[1])\nfor n in range(50): answers.put("actor", {"n": n}, Entry(str(n)))\n'
               'os.kill(os.getpid(), 9)')
    process = subprocess.run([sys.executable, '-c', program, str(tmp_path)])
    assert process.returncode == -9
    with Answers(tmp_path) as answers:
        assert [answers.get({'n': n}).response for n in range(50)] == [str(n) for n in range(50)]


def test_damage_is_named(tmp_path):
    (tmp_path / 'text.sqlite').write_text('no database ' * 1000)
    for replay in (False, True):
        with pytest.raises(AnswersError, match='text.sqlite .*not a database.*; it is damaged .* move it away'):
            Answers(tmp_path / 'text.sqlite', replay=replay)
    with Answers(tmp_path / 'half.sqlite') as answers:
        for n in range(200):
            answers.put('actor', {'n': n}, Entry('x' * 500))
    data = (tmp_path / 'half.sqlite').read_bytes()
    (tmp_path / 'half.sqlite').write_bytes(data[:4096] + b'\xff' * (len(data) - 4096))
    with pytest.raises(AnswersError, match='half.sqlite .*malformed'):
        with Answers(tmp_path / 'half.sqlite') as answers:
            [answers.get({'n': n}) for n in range(200)]
    (tmp_path / 'file').write_text('')
    with pytest.raises(AnswersError, match='cannot keep the answers in .*file .File exists'):
        Answers(tmp_path / 'file')
    with pytest.raises(AnswersError, match='there are no answers to replay in .*nothing'):
        Answers(tmp_path / 'nothing', replay=True)
    assert not (tmp_path / 'nothing').exists()


def test_a_file_of_another_program_is_not_taken_for_a_record(tmp_path):
    with sqlite3.connect(tmp_path / 'other.sqlite') as database:
        database.execute('CREATE TABLE answers (key TEXT)')
    database.close()
    with pytest.raises(AnswersError, match='no answers to replay'):
        Answers(tmp_path / 'other.sqlite', replay=True)


@pytest.mark.skipif(os.geteuid() == 0, reason='root writes everywhere')
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(AnswersError, match='cannot keep the answers'):
        Answers(tmp_path)


def test_a_file_that_becomes_unwritable_is_named(tmp_path):
    with Answers(tmp_path) as answers:
        answers.put('actor', REQUEST, Entry('a'))
        with sqlite3.connect(tmp_path / 'answers.sqlite') as database:
            database.execute('DROP TABLE completions')
        database.close()
        with pytest.raises(AnswersError, match='answers.sqlite .no such table'):
            answers.put('actor', REQUEST, Entry('b'))
