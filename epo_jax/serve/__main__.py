"""Serve a model or the strategist of a run by OpenAI's protocol.

    python -m epo_jax.serve --model=smollm2
    python -m epo_jax.serve --workdir=runs/quickstart --port=8001

Clients reach it as http://127.0.0.1:8000/v1. SIGTERM or SIGINT (Ctrl-C) stops it after the answers in progress.
"""

import argparse
import os
from pathlib import Path
from typing import Optional, Sequence

from epo_jax.runtime import command
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.secrets import read_key


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.serve', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--model', help='a model as in docs/models.md')
    add('--workdir', help='directory of a run whose strategist is served')
    add('--step', type=int, help='checkpoint of the run (default: the last one)')
    add('--chat_template', default='', help="template of a model (default: the tokenizer's own)")
    add('--dtype', default='auto', choices=('auto', 'float32', 'bfloat16'), help='of parameters and activations')
    add('--host', default='127.0.0.1', help='address to listen at (default: this machine only)')
    add('--port', type=int, default=8000, help='port to listen at; 0 for any that is free')
    add('--api_key_variable', default='', help='environment variable with the key that clients must send')
    add('--slots', type=int, default=8, help='requests that are served at once (default: 8)')
    add('--capacity', type=int, default=4096, help='longest conversation with its answer, in tokens (default: 4096)')
    add('--waiting', type=int, default=256, help='requests that may wait for a slot (default: 256)')
    add('--block', type=int, default=4, help='tokens that are decoded between two looks at new requests (default: 4)')
    return parser


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command, see the module docstring."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if (args.model is None) == (args.workdir is None):
        parser.error('give either --model or --workdir')
    if min(args.slots, args.capacity, args.waiting, args.block) < 1:
        parser.error('--slots, --capacity, --waiting and --block must be positive')
    with command.one_line_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Load the model, and serve until a signal arrives."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from epo_jax.runtime import timing
    from epo_jax.serve import app, listening, loading
    from epo_jax.serve.completions import Completions
    from epo_jax.serve.engine import Engine, Options

    timing.enable_compilation_cache(Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'epo_jax')
    key = read_key(args.api_key_variable) if args.api_key_variable else ''
    if args.api_key_variable and not key:
        raise InputError(f'--api_key_variable: ${args.api_key_variable} is not set')
    loaded = loading.load(args.model or args.workdir, args.chat_template, args.dtype, args.step)
    sockets = listening.bind(args.host, args.port)
    engine = Engine(loaded.language.sampler(), loaded.language.params, Options(
        args.slots, args.capacity, args.waiting, args.block, no_repeat=loaded.strategist.no_repeat))
    routes = app.Server(Completions(loaded, engine), key).routes()
    listening.serve(app.make_app(routes, engine.close), sockets, f'serving {loaded.name}')


if __name__ == '__main__':
    command.run(main)
