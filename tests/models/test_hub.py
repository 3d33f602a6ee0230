"""Names of the Hugging Face Hub, against a hub on loopback."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import fake_hub
from families import LLAMA, assert_equal, random_params
import jax
import numpy as np
import pytest

from epo_jax import testing
from epo_jax.language import ModelNotFoundError, find_model
from epo_jax.models import hub, peft, weights
from epo_jax.models.hub import HubName
from epo_jax.models.lora import LoRA
from epo_jax.models.transformer import Transformer
from epo_jax.plan import programs

COMMIT = fake_hub.COMMIT


@pytest.mark.parametrize('name, expected', [
    ('Qwen/Qwen2.5-0.5B-Instruct', HubName('Qwen/Qwen2.5-0.5B-Instruct')),
    ('Qwen/Qwen2.5-0.5B-Instruct@main', HubName('Qwen/Qwen2.5-0.5B-Instruct', None, 'main')),
    ('a/b@refs/pr/1', HubName('a/b', None, 'refs/pr/1')),
    ('a/b/c-q8_0.gguf', HubName('a/b', 'c-q8_0.gguf')),
    ('a/b/Q8/c.GGUF@v1.0', HubName('a/b', 'Q8/c.GGUF', 'v1.0')),
    ('gpt-4o@https://api.openai.com/v1', None), ('a/b@http://localhost:8000/v1', None), ('a/b@', None),
    ('model', None), ('/models/llama', None), ('./a/b', None), ('../a', None), ('a/../b', None), ('a/b/c', None),
    ('a/b/../c.gguf', None), ('a/b ', None), ('', None), ('a//b', None), ('~/a', None)])
def test_names(name, expected):
    assert hub.parse(name) == expected
    assert expected is None or str(expected) == name


@pytest.fixture
def served():
    server = fake_hub.FakeHub()
    yield server
    server.close()


@pytest.fixture(scope='module')
def small_model(tmp_path_factory):
    """A folder with a small model, and files that nobody reads."""
    folder = tmp_path_factory.mktemp('hub') / 'model'
    config = testing.dummy_config()
    weights.save(folder, config, random_params(config))
    testing.byte_tokenizer().save_pretrained(folder)
    for name in ('README.md', 'pytorch_model.bin', 'consolidated.safetensors', 'onnx/model.onnx', 'tf_model.h5'):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b'unread' * 1000)
    return folder


@pytest.fixture
def model(served, small_model, tmp_path):
    """The folder of the repository tiny/llama."""
    folder = served.repositories['tiny/llama'] = shutil.copytree(small_model, tmp_path / 'model')
    return folder


def python(served, home, code, **env):
    """Run code in a process of its own, since huggingface_hub reads the environment when it is imported."""
    head = 'import json, sys\nfrom epo_jax.models import hub\nfrom epo_jax.models.hub import HubError\n'
    clean = {key: value for key, value in os.environ.items() if not key.startswith('HF_')}
    done = subprocess.run(
        [sys.executable, '-c', head + code], capture_output=True, text=True,
        env=clean | {'HF_HOME': str(home), 'HF_ENDPOINT': served.url, 'PYTHONPATH': os.pathsep.join(sys.path),
                     'NO_PROXY': '127.0.0.1'} | env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


FETCH = ('name = hub.pin(hub.parse(sys.argv[1] if sys.argv[1:] else NAME))\n'
         'print(json.dumps([str(name), str(hub.fetch(name, hub.TEXT_FILES + hub.WEIGHT_FILES))]))')
REFUSED = ('try:\n    print(json.dumps(["no error", str(hub.fetch(hub.pin(hub.parse(NAME)), hub.WEIGHT_FILES))]))\n'
           'except HubError as error:\n    print(json.dumps(["error", str(error)]))')


def test_only_the_files_that_are_read_are_downloaded_once(served, model, tmp_path):
    (name, folder), stderr = python(served, tmp_path / 'home', FETCH.replace('NAME', '"tiny/llama"'))
    assert name == f'tiny/llama@{COMMIT}' and folder.endswith(f'snapshots/{COMMIT}') and 'Fetching' not in stderr
    assert str(tmp_path / 'home') in folder
    files = {'config.json', 'tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja', 'model.safetensors'}
    assert served.downloaded() == files == set(os.listdir(folder))
    assert (pathlib.Path(folder) / 'model.safetensors').read_bytes() == (model / 'model.safetensors').read_bytes()
    served.requests.clear()
    for revision in ('main', 'v1', 'refs/pr/1', COMMIT):
        (name, again), _ = python(served, tmp_path / 'home', FETCH.replace('NAME', f'"tiny/llama@{revision}"'))
        assert (name, again) == (f'tiny/llama@{COMMIT}', folder)
    assert not served.downloaded()
    served.requests.clear()
    offline, _ = python(served, tmp_path / 'home', FETCH.replace('NAME', '"tiny/llama"'), HF_HUB_OFFLINE='1')
    assert offline == [f'tiny/llama@{COMMIT}', folder] and not served.requests


def test_pinning_downloads_no_weights(served, model, tmp_path):
    python(served, tmp_path, 'print(json.dumps(str(hub.pin(hub.parse("tiny/llama")))))')
    assert 'config.json' in served.downloaded() and 'model.safetensors' not in served.downloaded()


def test_an_interrupted_download_continues(served, model, tmp_path):
    served.cut['model.safetensors'] = 10_000
    (_, folder), _ = python(served, tmp_path, FETCH.replace('NAME', '"tiny/llama"'))
    assert (pathlib.Path(folder) / 'model.safetensors').read_bytes() == (model / 'model.safetensors').read_bytes()
    assert [path for method, path in served.requests if method == 'GET'].count(
        f'/tiny/llama/resolve/{COMMIT}/model.safetensors') == 2


def test_gguf_files_of_a_repository(served, model, tmp_path):
    for name in ('small.gguf', 'q8/big-00001-of-00002.gguf', 'q8/big-00002-of-00002.gguf', 'other.gguf'):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(name.encode())
    (name, file), _ = python(served, tmp_path, FETCH.replace('NAME', '"tiny/llama/small.gguf"'))
    assert name == f'tiny/llama/small.gguf@{COMMIT}' and pathlib.Path(file).read_bytes() == b'small.gguf'
    assert served.downloaded() == {'small.gguf'}
    (name, file), _ = python(served, tmp_path, FETCH.replace('NAME', '"tiny/llama/q8/big-00001-of-00002.gguf"'))
    assert name == f'tiny/llama/q8/big-00001-of-00002.gguf@{COMMIT}'
    assert file.endswith('q8/big-00001-of-00002.gguf') and served.downloaded() == {
        'small.gguf', 'q8/big-00001-of-00002.gguf', 'q8/big-00002-of-00002.gguf'}
    (_, message), _ = python(served, tmp_path, REFUSED.replace('NAME', '"tiny/llama/none.gguf"'))
    assert message == 'tiny/llama/none.gguf: the repository tiny/llama holds no file none.gguf'


@pytest.mark.parametrize('name, env, message', [
    ('tiny/none', {}, "'tiny/none' is neither a file or folder here nor a repository of URL that can be read; check the "
                      'name, and set HF_TOKEN if the repository is private'),
    ('tiny/llama@v9', {}, "tiny/llama@v9: the repository tiny/llama has no revision 'v9'"),
    ('tiny/gated', {}, 'tiny/gated: access to this repository is restricted; accept its terms at URL/tiny/gated, and '
                       'set HF_TOKEN to a token of your account'),
    ('tiny/llama', {'HF_HUB_OFFLINE': '1'}, "'tiny/llama' is neither a file or folder here nor complete in the cache "
                                            'HOME/hub, and HF_HUB_OFFLINE is set'),
    ('tiny/llama', {'HF_ENDPOINT': 'http://127.0.0.1:9'}, 'http://127.0.0.1:9 cannot be reached ('),
    ('tiny/empty', {}, 'holds no config.json, so it is not a model in the Hugging Face format; if it holds GGUF files'),
])
def test_errors_are_one_line(name, env, message, served, model, tmp_path):
    served.repositories['tiny/gated'] = model
    served.gated.add('tiny/gated')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'a.gguf').write_bytes(b'')
    served.repositories['tiny/empty'] = tmp_path / 'empty'
    (kind, found), _ = python(served, tmp_path / 'home', REFUSED.replace('NAME', repr(name)), **env)
    assert kind == 'error' and '\n' not in found
    assert message.replace('URL', served.url).replace('HOME', str(tmp_path / 'home')) in found


def test_a_token_opens_a_gated_repository(served, model, tmp_path):
    served.repositories['tiny/gated'] = model
    served.gated.add('tiny/gated')
    (name, _), _ = python(served, tmp_path, FETCH.replace('NAME', '"tiny/gated"'), HF_TOKEN=fake_hub.TOKEN)
    assert name == f'tiny/gated@{COMMIT}'


def test_weights_missing_from_the_cache_are_an_error_offline(served, model, tmp_path):
    python(served, tmp_path, 'print(json.dumps(str(hub.pin(hub.parse("tiny/llama")))))')
    (kind, message), _ = python(served, tmp_path, REFUSED.replace('NAME', '"tiny/llama"'), HF_HUB_OFFLINE='1')
    assert kind == 'error' and 'nor complete in the cache' in message


def test_a_name_loads_the_same_model_as_its_folder(served, model, tmp_path):
    code = '''
import jax, numpy as np
from epo_jax.language import find_model, load_language
from epo_jax.plan.programs import model_config
from epo_jax.runtime.parallel import make_mesh
load = lambda path: load_language(path, '', np.float32, make_mesh((1, 1, 1))).with_params()
named, local = load('tiny/llama@main'), load(FOLDER)
jax.tree.map(np.testing.assert_array_equal, named.params, local.params)
assert named.chat == local.chat and named.config == local.config == model_config('tiny/llama')
print(json.dumps([named.path, find_model('tiny/llama')]))
'''.replace('FOLDER', repr(str(model)))
    (path, folder), _ = python(served, tmp_path / 'home', code)
    assert path == f'tiny/llama@{COMMIT}' and 'model.safetensors' in os.listdir(folder)


def test_a_local_path_wins(tmp_path, monkeypatch):
    weights.save(tmp_path / 'tiny' / 'llama', LLAMA, random_params(LLAMA))
    monkeypatch.chdir(tmp_path)
    assert find_model('tiny/llama') == 'tiny/llama'
    assert programs.model_config('tiny/llama') == LLAMA
    assert_equal(weights.load(find_model('tiny/llama'), stacked=True)[1], random_params(LLAMA))


@pytest.mark.parametrize('path', ['/no/such/folder', 'no/such/folder', 'name', 'gpt-4o@https://api.openai.com/v1'])
def test_an_error_about_another_name_says_what_names_there_are(path):
    with pytest.raises(ModelNotFoundError, match='give a Hugging Face folder, a GGUF file, or the name of a repository'):
        find_model(path)


@pytest.mark.slow
def test_a_run_keeps_the_commit_and_exports_an_adapter_of_the_repository(served, model, tmp_path):
    lora = LoRA(2, 8.0, ('q', 'v'))
    shapes = jax.eval_shape(lambda: lora.init(Transformer(testing.dummy_config(), stacked=True), jax.random.key(0)))
    peft.save(tmp_path / 'adapter', lora, jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes))
    served.repositories['tiny/adapter'] = tmp_path / 'adapter'
    code = '''
from epo_jax import experiment, export, load_config
config = load_config('sotopia:tiny')
config.model.path, config.lora.init = 'tiny/llama', 'tiny/adapter@main'
config.iterations, config.evaluation.episodes = 1, 0
experiment.run(config, WORK)
export.export(WORK, WORK + '/out')
saved = json.load(open(WORK + '/config.json'))
print(json.dumps([saved['model']['path'], saved['lora'], json.load(open(WORK + '/out/adapter_config.json'))]))
'''.replace('WORK', repr(str(tmp_path / 'run')))
    (path, saved, exported), _ = python(served, tmp_path / 'home', code)
    assert path == f'tiny/llama@{COMMIT}' and saved['init'] == f'tiny/adapter@{COMMIT}'
    assert (saved['rank'], saved['alpha'], saved['targets']) == (2, 8.0, ['q', 'v'])
    assert exported['base_model_name_or_path'] == 'tiny/llama' and exported['r'] == 2
    served.requests.clear()
    again, _ = python(served, tmp_path / 'home', code.replace("/out'", "/again'"), HF_HUB_OFFLINE='1')
    assert again == [path, saved, exported] and not served.requests
