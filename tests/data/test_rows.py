"""The streaming reader against the json module, cut at every byte and with every kind of damage."""

import json
import pathlib
import random
import subprocess
import sys

import pytest

from epo_jax.data.rows import BadRows, RowError, read_rows, row_writer
from epo_jax.runtime import rows as reading
from epo_jax.runtime.rows import parse_row, whole_number

ROOT = pathlib.Path(__file__).parents[2]
NASTY = ['', '"', '\\', '\\"', '[', ']', '{', '}', ',', '\n', '\u2028', 'é', '😀', '\x00', '\\u005d', '"]}', '\t']


def random_row(rng):
    def text():
        return ''.join(rng.choice(NASTY + ['a', 'word ']) for _ in range(rng.randrange(6)))

    def value(depth):
        kind = rng.randrange(7 if depth < 3 else 5)
        return (rng.randrange(-5, 5), rng.random(), text(), None, True,
                [value(depth + 1) for _ in range(rng.randrange(3))] if kind == 5 else 0,
                {text(): value(depth + 1) for _ in range(rng.randrange(3))} if kind == 6 else 0)[kind]

    return {text(): value(0) for _ in range(rng.randrange(4))}


def read(path, skip=False):
    return [row for _, row in read_rows(path, BadRows(skip))]


@pytest.mark.parametrize('chunk', [1, 2, 3, 7, 64, 1 << 20])
def test_reads_the_same_rows_as_json(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(reading, 'CHUNK', chunk)
    rng, path = random.Random(chunk), tmp_path / 'rows.json'
    for trial in range(30):
        rows = [random_row(rng) for _ in range(rng.randrange(6))]
        style = dict(indent=rng.choice([None, 1, 4]), ensure_ascii=rng.random() < 0.5)
        space = rng.choice(['', '\n', ' \r\n\t'])
        path.write_text(space + json.dumps(rows, **style) + space, newline='')
        assert read(path) == json.loads(path.read_text()) == rows
        if rows:
            path.write_text(''.join(json.dumps(row, ensure_ascii=style['ensure_ascii']) + '\n' + space
                                    for row in rows), newline='')
            assert read(path) == rows


def test_spans_are_the_positions_of_the_rows(tmp_path):
    rng = random.Random(0)
    rows = [random_row(rng) for _ in range(50)]
    for path, text in ((tmp_path / 'a.json', '\ufeff \n' + json.dumps(rows, indent=2, ensure_ascii=False)),
                       (tmp_path / 'b.jsonl', '\ufeff' + ''.join(json.dumps(row) + '\r\n\n' for row in rows))):
        path.write_bytes(text.encode())
        data = path.read_bytes()
        spans = [span for span, _ in read_rows(path, BadRows(False))]
        assert [parse_row(data[span.start:span.start + span.size]) for span in spans] == rows


@pytest.mark.parametrize('suffix', ['.json', '.jsonl'])
def test_writes_the_format_of_json_dump_and_reads_it_back(tmp_path, suffix):
    rng, path = random.Random(1), tmp_path / f'out{suffix}'
    for count in (0, 1, 7):
        rows = [random_row(rng) for _ in range(count)]
        with row_writer(path) as write:
            for row in rows:
                write(row)
        if suffix == '.json':
            assert path.read_text() == json.dumps(rows, ensure_ascii=False, indent=4)
        assert read(path) == rows
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / 'out.json'
    path.write_text('old')
    with pytest.raises(ValueError), row_writer(path) as write:
        write({'x': 1})
        write({'x': float('nan')})
    assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


GOOD = b'{"x": 1}'
BAD = [
    (b'{"x": 1,}', 'not JSON'), (b'{"x": NaN}', 'NaN is not finite'), (b'{"x": -Infinity}', 'not finite'),
    (b'{"x": "\xff"}', 'invalid UTF-8'), (b'[1, 2]', 'expected an object, found list'), (b'{"x" 1}', 'not JSON'),
    (b'{"x": {"y": [0.5, -1e999]}}', 'number -1e999 is not finite'),
    (b'{"x": ["ab\\uDBff c"]}', "half of a surrogate pair after .*ab'"),
    (b'{"\\udc00": 1}', 'half of a surrogate pair after'),
    (b'{' + b'"x":[' * 100000 + b']' * 100000 + b'}', 'not JSON'), (b'{"x": "a\nb"}', 'not JSON')]


@pytest.mark.parametrize('bad, reason', BAD)
def test_a_bad_row_is_named_and_the_other_rows_are_read(tmp_path, capsys, bad, reason):
    path = tmp_path / 'rows.json'
    path.write_bytes(b'[' + b', '.join([GOOD, bad, GOOD, GOOD]) + b']')
    with pytest.raises(RowError, match=f'rows.json, row 2: .*{reason}'):
        read(path)
    skipped = BadRows(True)
    assert len(list(read_rows(path, skipped))) == 3 and skipped.count == 1
    assert 'row 2' in capsys.readouterr().err
    if b'\n' not in bad:
        path.write_bytes(b'\n'.join([GOOD, bad, GOOD, GOOD]))
        with pytest.raises(RowError, match=f'rows.json, row 2: .*{reason}'):
            read(path)
        assert len(read(path, skip=True)) == 3


@pytest.mark.parametrize('text, number, reason, others', [
    (b'[{"x": 1}, 5, {"x": 1}]', 2, 'expected an object', 2), (b'[{"x": 1} {"x": 1}]', 2, 'expected an object', 2),
    (b'[{"x": 1},]', 2, 'expected an object', 1), (b'["a", {"x": 1}]', 1, 'expected an object', 1),
    (b'[{"x": 1}', 2, 'ends before', 1), (b'[{"x": 1}, {"x": ', 2, 'ends before', 1),
    (b'[{"x": 1}, {"x": "]}', 2, 'ends before', 1), (b'[', 1, 'ends before', 0),
    (b'[{"x": 1}] x', 2, 'text after the end of the array', 1),
    (b'[{"x": 1}]\n[{"x": 1}]', 2, 'text after the end of the array', 1),
    (b'hello', 1, 'not JSON', 0), (b'5', 1, 'expected an object, found int', 0)])
@pytest.mark.parametrize('chunk', [1, 5, 1 << 20])
def test_broken_arrays(tmp_path, monkeypatch, text, number, reason, others, chunk):
    monkeypatch.setattr(reading, 'CHUNK', chunk)
    path = tmp_path / 'rows.json'
    path.write_bytes(text)
    with pytest.raises(RowError, match=f'row {number}: .*{reason}'):
        read(path)
    assert len(read(path, skip=True)) == others


def test_a_row_that_never_ends_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, 'CHUNK', 100)
    monkeypatch.setattr(reading, 'LONGEST_ROW', 1000)
    path = tmp_path / 'rows.json'
    path.write_text('[{"x": 1}, {"x": "' + 'a' * 5000 + '"}]')
    with pytest.raises(RowError, match='row 2: longer than'):
        read(path)


def test_memory_stays_flat(tmp_path):
    program = ('import resource, sys; from epo_jax.data.rows import *\n'
               'n = sum(1 for _ in read_rows(sys.argv[1], BadRows(False)))\n'
               'print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)')
    row = {'conversations': [{'from': 'human', 'value': 'x' * 300}] * 6, 'score': 1}
    used = []
    for count in (3_000, 60_000):
        path = tmp_path / f'{count}.json'
        with row_writer(path) as write:
            for _ in range(count):
                write(row)
        out = subprocess.run([sys.executable, '-c', program, path], cwd=ROOT, check=True, capture_output=True).stdout
        rows, kilobytes = map(int, out.split())
        assert rows == count
        used.append(kilobytes)
    assert path.stat().st_size > 100e6 and used[1] < used[0] + 4_000


@pytest.mark.parametrize('value, expected', [
    (3, 3), (3.0, 3), ('3', 3), ('3.0', 3), (' 3 ', 3), (-1, -1), (0, 0), (2.5, None), ('x', None), ('', None), (True, None),
    (None, None), ([3], None), (float('nan'), None), (float('inf'), None), ('nan', None), ('1e999', None), (10 ** 400, 10 ** 400)])
def test_whole_numbers_may_be_written_in_several_ways(value, expected):
    assert whole_number(value) == expected and type(whole_number(value)) is type(expected)
