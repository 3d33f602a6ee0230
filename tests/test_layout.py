"""Imports of the package point down the layers of docs/design.md."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[1] / 'epo_jax'
LAYERS = (
    'main cli evaluate label prepare export episodes plan report serve tools',
    'experiment compiled iteration results evaluation cases requests offline runs',
    'roles language defaults presets model_names data',
    'rl rewards records scores',
    'branching overlap',
    'rollout',
    'envs agents',
    'text models',
    'config workdir runtime')
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
EXCEPTIONS = {'testing'}  # see docs/design.md


def part(module):
    """Return the part of the package that a module (without 'epo_jax.') belongs to."""
    return 'episodes' if module == 'data.episodes' else module.split('.')[0]


def imported(path):
    """Return the modules of the package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.module == 'epo_jax':
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('epo_jax.'):
            yield node.module.removeprefix('epo_jax.')


def test_imports_point_down():
    files = [path for path in PACKAGE.rglob('*.py') if path.name != '__init__.py' or path.parent != PACKAGE]
    upward = []
    for path in files:
        own = part('.'.join(path.relative_to(PACKAGE).with_suffix('').parts))
        if own in EXCEPTIONS:
            continue
        for module in imported(path):
            assert part(module) in LAYER or part(module) in EXCEPTIONS, f'{path}: {module} belongs to no layer'
            if LAYER.get(part(module), len(LAYERS)) < LAYER[own]:
                upward.append((str(path.relative_to(PACKAGE)), module))
    assert len(files) > 80 and not upward
