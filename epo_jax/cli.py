"""The command `epo`: one name for the commands of the package.

    epo train --config=sotopia:tiny --workdir=runs/tiny      is  python -m epo_jax.main --config=... --workdir=...
"""

import os
import runpy
import sys

COMMANDS = {
    'train': ('epo_jax.main', 'train a strategist, online or from a file, and evaluate it'),
    'evaluate': ('epo_jax.evaluate', 'compare strategists without training'),
    'label': ('epo_jax.label', 'have a judge name the critical turns of conversations'),
    'prepare': ('epo_jax.prepare', 'turn labeled conversations into training data'),
    'episodes': ('epo_jax.data.episodes', 'turn the episodes of a run into conversations'),
    'export': ('epo_jax.export', 'export the strategist of a run as a Hugging Face folder'),
    'report': ('epo_jax.report', 'write a report of runs as one HTML file'),
    'serve': ('epo_jax.serve', "serve a model or a strategist by OpenAI's protocol"),
    'plan': ('epo_jax.plan', 'estimate memory and time of a run on a TPU slice'),
}


def main() -> None:
    """Run a command; without one, list them."""
    command = sys.argv[1] if len(sys.argv) > 1 else ''
    if command not in COMMANDS:
        listed = '\n'.join(f'  {name:<10}{meaning}' for name, (_, meaning) in COMMANDS.items())
        usage = f'usage: epo COMMAND [FLAGS]; epo COMMAND --help lists the flags\n\n{listed}'
        if command in ('', '-h', '--help', 'help'):
            print(usage)
            return
        sys.exit(f'error: there is no command {command!r}\n{usage}')
    module, _ = COMMANDS[command]
    sys.argv[:2] = [f'epo {command}']
    sys.path.insert(0, os.getcwd())  # as with python -m, so that a module of the user is found
    runpy.run_module(module, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
    main()
