"""Serve a model by OpenAI's protocol, or put a strategist before the model of an agent.

    python -m epo_jax.serve --model=smollm2
    python -m epo_jax.serve --workdir=runs/quickstart --port=8001
    python -m epo_jax.serve --workdir=runs/quickstart --upstream=https://api.openai.com/v1 --mode=ab --record=traffic

Clients reach it as http://127.0.0.1:8000/v1. With --upstream, it is a side-car: a proxy that puts a strategy into every
request for a chat completion (--mode=advise), into none (observe), or into those of a part of the conversations (ab).
SIGTERM or SIGINT (Ctrl-C) stops it after the answers in progress.
"""

import argparse
import os
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

from epo_jax.data.sharegpt import DOMAINS
from epo_jax.runtime import command
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.functions import import_function
from epo_jax.runtime.secrets import read_key, redact as redact_secrets


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
    side = parser.add_argument_group('side-car')
    add = side.add_argument
    add('--upstream', help='base URL of the endpoint that answers')
    add('--upstream_key_variable', default='', help='environment variable with its API key (default: that of the '
        'client is sent on, unless --api_key_variable is given)')
    add('--mode', default='advise', choices=('advise', 'observe', 'ab'), help='which conversations are advised')
    add('--share', type=float, default=0.5, help='ab: share of the conversations that are advised (default: 0.5)')
    add('--seed', type=int, default=0, help='of the strategies and of the arms')
    add('--place', default='user', choices=('user', 'system'), help='where a strategy goes: the end of the last '
        'message that the agent reads, as in training, or the end of the system message')
    add('--domain', default='', choices=('', *DOMAINS), help='prompts of the strategist (default: those it was trained '
        'with, or general)')
    add('--short', action='store_true', help='short prompts, where the run does not say')
    add('--begun', action='store_true', help="begin strategies with 'Strategy:', where the run does not say")
    add('--goal', default='', help='of conversations without the header X-Epo-Goal (default: the system message)')
    add('--situation', default='', help='what the strategist knows besides (default: the system message)')
    add('--name', default='Agent', help='what the strategist calls the agent')
    add('--partner', default='Partner', help='what the strategist calls the other side')
    add('--record', help='folder that keeps the conversations')
    add('--record_text', default='on', choices=('on', 'off'), help='off keeps scores and no text')
    add('--redact', default='', help="function of texts, 'package.module:function', applied to all that is kept")
    add('--rotate', type=int, default=100, help='conversations of a file (default: 100)')
    return parser


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command, see the module docstring."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if (args.model is None) == (args.workdir is None):
        parser.error('give either --model or --workdir')
    if min(args.slots, args.capacity, args.waiting, args.block) < 1:
        parser.error('--slots, --capacity, --waiting and --block must be positive')
    if args.upstream is None and args.record:
        parser.error('--record needs --upstream; a server without a side-car keeps nothing')
    if not 0 <= args.share <= 1 or args.rotate < 1 or args.seed < 0:
        parser.error('--share must be from 0 to 1, --rotate positive, and --seed not negative')
    with command.one_line_errors():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Load the model, and serve until a signal arrives."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from epo_jax.runtime import timing
    from epo_jax.serve import app, listening, loading

    timing.enable_compilation_cache(Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')).expanduser() / 'epo_jax')
    guard = app.Guard(required_key('api_key_variable', args.api_key_variable))
    upstream_key = required_key('upstream_key_variable', args.upstream_key_variable)
    redact = load_function(args.redact) if args.redact else None
    loaded = loading.load(args.model or args.workdir, args.chat_template, args.dtype, args.step)
    sockets = listening.bind(args.host, args.port)
    if args.upstream is None:
        application, what = make_server(args, loaded, guard), f'serving {loaded.name}'
    else:
        application = make_sidecar(args, loaded, guard, upstream_key, redact)
        what = f'advising by {loaded.name} before {redact_secrets(args.upstream)} ({args.mode})'
    listening.serve(application, sockets, what)


def make_server(args: argparse.Namespace, loaded: Any, guard: Any) -> Any:
    """Return the application that serves a model."""
    from epo_jax.serve import app
    from epo_jax.serve.completions import Completions
    from epo_jax.serve.engine import Engine, Options

    engine = Engine(loaded.language.sampler(), loaded.language.params, Options(
        slots=args.slots, capacity=args.capacity, waiting=args.waiting, block=args.block))
    completions = Completions(loaded, engine)
    return app.make_app(app.Server(completions, guard).routes(), completions.close)


def make_sidecar(args: argparse.Namespace, loaded: Any, guard: Any, upstream_key: str,
                 redact: Optional[Callable[[str], str]]) -> Any:
    """Return the application that advises."""
    from epo_jax.serve import app
    from epo_jax.serve.engine import Options
    from epo_jax.serve.recording import Recorder
    from epo_jax.serve.relay import Upstream
    from epo_jax.serve.sidecar import Plan, Sidecar
    from epo_jax.serve.strategist import Strategist, start_engine

    upstream = Upstream(args.upstream, upstream_key)
    options = Options(slots=args.slots, waiting=args.waiting, block=args.block)
    strategist = Strategist(loaded, start_engine(loaded, options), args.domain, args.short, args.begun)
    recorder = args.record and Recorder(args.record, loaded, strategist.domain, args.rotate,
                                        args.record_text == 'on', redact)
    plan = Plan(args.mode, args.share, args.seed, args.place, args.goal, args.situation, args.name, args.partner)
    sidecar = Sidecar(strategist, upstream, plan, guard, recorder or None, not args.api_key_variable)
    return app.make_app(sidecar.routes(), sidecar.close)


def required_key(flag: str, variable: str) -> str:
    """Return the key in an environment variable; '' if none is named, and InputError if it is empty."""
    key = read_key(variable) if variable else ''
    if variable and not key:
        raise InputError(f'--{flag}: ${variable} is not set')
    return key


def load_function(name: str) -> Callable[[str], str]:
    """Return the function of a name 'package.module:function'."""
    try:
        return import_function(name)
    except ValueError as error:
        raise InputError(f'--redact: there is no function {name!r} ({error}); give package.module:function') from error


if __name__ == '__main__':
    command.run(main)
