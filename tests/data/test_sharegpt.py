"""How --data names a file, in every layout."""

import json

import pytest

from epo_jax.data.sharegpt import DataError, Layout, find_source, messages


def info(path, **entries):
    (path / 'dataset_info.json').write_text(json.dumps(entries))


def test_plain_files(tmp_path):
    (tmp_path / 'raw.json').write_text('[]')
    assert find_source(str(tmp_path / 'raw.json')).path == tmp_path / 'raw.json'
    with pytest.raises(DataError, match='no data at'):
        find_source(str(tmp_path / 'other.json'))
    with pytest.raises(DataError, match='raw.json is a single file of rows; remove :name'):
        find_source(f'{tmp_path}/raw.json:name')


def test_dataset_info_of_llama_factory(tmp_path):
    for name in ('sotopia_pi_rl_data.json', 'alfshop_rl_data.json', 'chat.json'):
        (tmp_path / name).write_text('[]')
    form = {'formatting': 'sharegpt', 'columns': {'messages': 'conversations'}}
    info(tmp_path, sotopia_pi_rl={'file_name': 'sotopia_pi_rl_data.json', **form},
         alfshop_rl={'file_name': 'alfshop_rl_data.json', **form},
         chat={'file_name': 'chat.json', 'formatting': 'sharegpt', 'columns': {'messages': 'turns'}, 'tags': {
             'role_tag': 'role', 'content_tag': 'content', 'user_tag': 'user', 'assistant_tag': 'assistant'}},
         gone={'file_name': 'gone.json', **form}, instructions={'file_name': 'x.json'}, hub={'hf_hub_url': 'a/b'})
    for prefix in (tmp_path, tmp_path / 'dataset_info.json'):
        assert find_source(f'{prefix}:alfshop_rl').path == tmp_path / 'alfshop_rl_data.json'
        chat = find_source(f'{prefix}:chat')
        assert chat.layout == Layout('turns', 'role', 'content', 'user', 'assistant')
        with pytest.raises(DataError, match='has sotopia_pi_rl, alfshop_rl, chat, gone; choose one'):
            find_source(str(prefix))
        with pytest.raises(DataError, match="'instructions' is not one of them"):
            find_source(f'{prefix}:instructions')
        with pytest.raises(DataError, match='gone.json, which does not exist'):
            find_source(f'{prefix}:gone')
    row = {'turns': [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]}
    assert messages(row, chat.layout) == row['turns']
    with pytest.raises(ValueError, match="no list 'conversations'"):
        messages(row)
    info(tmp_path, only={'file_name': 'chat.json', **form})
    assert find_source(str(tmp_path)).path == tmp_path / 'chat.json'
    for wrong in ({'columns': ['turns']}, {'columns': {'messages': ['turns']}}, {'columns': {'system': {'a': 1}}},
                  {'tags': 'role'}, {'tags': {'role_tag': 5}}, {'file_name': 5}, {'file_name': ''}):
        info(tmp_path, only={'file_name': 'chat.json', **form, **wrong})
        with pytest.raises(DataError, match="dataset_info.json: 'only' is not in LLaMA-Factory's form"):
            find_source(str(tmp_path))
    info(tmp_path, only={'file_name': 'chat.json', 'formatting': 'sharegpt', 'columns': None, 'tags': None})
    assert find_source(str(tmp_path)).layout == Layout()
    for key, value in {'num_samples': 5, 'ranking': True, 'subset': 'x', 'split': 'test', 'folder': 'f'}.items():
        info(tmp_path, only={'file_name': 'chat.json', **form, key: value}, fine={'file_name': 'chat.json', **form})
        with pytest.raises(DataError, match=f"'only' declares {key}, which is not supported"):
            find_source(f'{tmp_path}:only')
        assert find_source(f'{tmp_path}:fine').path == tmp_path / 'chat.json'
    info(tmp_path, only={'file_name': '.', **form})
    with pytest.raises(DataError, match='which is a directory'):
        find_source(str(tmp_path))
    for text in (b'[1]', b'[' * 100_000, b'\xff\xfe{'):
        (tmp_path / 'dataset_info.json').write_bytes(text)
        with pytest.raises(DataError, match='is not a JSON object'):
            find_source(str(tmp_path))


def test_published_folder(tmp_path):
    with pytest.raises(DataError, match='holds no dataset_info.json or .*_data.json'):
        find_source(str(tmp_path))
    for name in ('sotopia_pi_rl', 'alfshop_rl'):
        (tmp_path / f'{name}_data.json').write_text('[]')
    assert find_source(f'{tmp_path}:sotopia_pi_rl').path == tmp_path / 'sotopia_pi_rl_data.json'
    with pytest.raises(DataError, match='alfshop_rl, sotopia_pi_rl; choose one'):
        find_source(str(tmp_path))
