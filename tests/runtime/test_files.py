"""Files are written completely or not at all."""

import pytest

from epo_jax.runtime import files


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / 'a file'
    files.write_atomically(path, 'one')
    files.write_atomically(str(path), 'zwei ü\n')
    assert path.read_text(encoding='utf-8') == 'zwei ü\n'
    files.write_atomically(path, b'\x00\xff')
    assert path.read_bytes() == b'\x00\xff'
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomically_keeps_the_old_file_on_failure(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    files.write_atomically(path, 'old')

    def full(descriptor):
        raise OSError('disk full')

    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(OSError, match='disk full'):
        files.write_atomically(path, 'new')
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_jsonl_comes_back(tmp_path):
    rows = [{'text': 'ü\u2028\n"', 'x': 0.1}, {'none': None, 'list': [1, 2]}]
    files.write_jsonl(tmp_path / 'rows.jsonl', rows)
    assert files.read_jsonl(tmp_path / 'rows.jsonl') == rows
    with pytest.raises(ValueError):
        files.write_jsonl(tmp_path / 'rows.jsonl', [{'x': float('nan')}])
    assert files.read_jsonl(tmp_path / 'rows.jsonl') == rows


def test_jsonl_names_the_bad_line(tmp_path):
    path = tmp_path / 'rows.jsonl'
    for bad in ('{"b": ', '[2]'):
        path.write_text('{"a": 1}\n' + bad)
        with pytest.raises(ValueError, match='rows.jsonl, line 2'):
            files.read_jsonl(path)
