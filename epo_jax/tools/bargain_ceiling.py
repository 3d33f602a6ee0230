"""Measure how much of the optimum a strategist can reach through an actor, in bargaining in words.

    python -m epo_jax.tools.bargain_ceiling --config=bargain:words --games=64

It plays training scenarios without a strategist, with the model of the configuration before training, with random
moves as advice, and with an oracle: the best sequence of moves against the opponent, which the oracle knows. A row
tells the mean outcome times ten, and how often the actor did what the advice says, where it was a legal move.
"""

import argparse
import dataclasses
from typing import Any, Callable, Optional, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from epo_jax.agents.base import Player, Seat
from epo_jax.envs.bargain import optimum, words
from epo_jax.envs.bargain.game import Bargain
from epo_jax.envs.bargain.language import INTENTS
from epo_jax.experiment import build_experiment, draw_scenarios, prepare, splits
from epo_jax.presets import load_config
from epo_jax.rollout import Turn, encode, episode_keys, rollout_on_host
from epo_jax.runtime.parallel import make_mesh
from epo_jax.runtime.progress import Progress
from epo_jax.text import tokenizer as text
from epo_jax.text.tokens import Tokens, pack


@dataclasses.dataclass(frozen=True)
class Script:
    """A strategist with a sentence for every turn of every slot; its parameters are these sentences, Tokens [B, T, K].

    Attributes:
      width: maximum number of tokens of a sentence.
    """

    width: int

    on_device = True

    def start(self, batch: int) -> jax.Array:
        """See Agent.start; the memory is the number of turns."""
        return jnp.zeros(batch, jnp.int32)

    def begin(self, params: Tokens, memory, opening, rows, group: int = 1):
        """See Agent.begin."""
        return jnp.where(rows, 0, memory)

    def respond(self, params: Tokens, memory, content, cue, choices, keys, who, live):
        """See Agent.respond."""
        now = jax.tree.map(lambda x: jnp.asarray(x)[jnp.arange(len(memory)), memory], params)
        return memory + live, Tokens(now.ids, now.length * live)

    def failed(self, memory):
        """See Agent.failed."""
        return jnp.zeros(len(memory), bool)

    def reasons(self, memory) -> Sequence[Optional[str]]:
        """See Agent.reasons."""
        return [None] * len(memory)


@dataclasses.dataclass(frozen=True)
class Row:
    """The games under one condition.

    Attributes:
      condition: its name.
      outcome: of every game, f[E].
      followed: whether the actor did as told, one entry for every advice that was a legal move.
      spoken: the strategies and moves of some games.
    """

    condition: str
    outcome: np.ndarray
    followed: Sequence[bool]
    spoken: Sequence[Sequence[tuple[str, str]]]


def script(moves: Sequence[Sequence[int]], tokenizer: Any) -> Player:
    """Return a strategist that says the moves (indices in INTENTS) of every slot, one a turn."""
    rows = [[text.encode(tokenizer, f' {words.MOVES[intent]}') for intent in row] for row in moves]
    width = max(len(ids) for row in rows for ids in row)
    packed = [pack(row, width) for row in rows]
    return Player(Script(width), jax.tree.map(lambda *xs: np.stack(xs), *packed), tokenizer)


def oracle(game: Bargain, scenarios: Sequence[Any]) -> list[list[int]]:
    """Return a best sequence of moves for every scenario."""
    queue = game.encode(scenarios)
    best = [int(optimum.try_sequences(game, jax.tree.map(lambda x: x[e:e + 1], queue))[0].argmax())
            for e in range(len(scenarios))]
    return [[INTENTS.index(name) for name in optimum.intents_of_column(game, column)] for column in best]


def measure(condition: str, table: Any, scenarios: Sequence[Any], keys: jax.Array) -> Row:
    """Play one game of every scenario; the table has one slot for each."""
    turns: list[Turn] = []
    episodes, _ = rollout_on_host(table, encode(table, scenarios), keys, len(scenarios), turns.append)
    tokenizer, followed = table.seats[0].actor.tokenizer, []
    spoken: list[list[tuple[str, str]]] = [[] for _ in scenarios]
    for turn in turns:
        texts = lambda tokens: [''] * len(scenarios) if tokens is None else [
            text.decode(tokenizer, row).strip() for row in tokens.rows()]
        for b, (advice, move) in enumerate(zip(texts(turn.strategy), texts(turn.message))):
            if not turn.live[b]:
                continue
            if advice in words.MOVES and not (advice == words.move('accept') and not spoken[b]):
                followed.append(advice == move)
            spoken[b].append((advice, move))
    return Row(condition, np.asarray(episodes.reward)[:, 0], followed, spoken)


def compare(exp: Any, scenarios: Sequence[Any], seed: int, conditions: Sequence[str],
            report: Callable[[Row], None]) -> None:
    """Play the scenarios under every condition."""
    game, roles = Bargain('family', exp.config.environment.rounds), exp.roles
    advice = np.random.default_rng(seed).integers(
        len(INTENTS) - 1, size=(len(scenarios), game.rounds)).tolist()  # all moves but walking away
    strategists = {
        'none': lambda: None, 'random': lambda: script(advice, roles.actor.tokenizer),
        'prompted': lambda: exp.seat('prompted', True, None, (), 0).strategist,
        'oracle': lambda: script(oracle(game, scenarios), roles.actor.tokenizer)}
    keys = episode_keys(seed, 0, np.arange(len(scenarios)))
    for name in conditions:
        table = exp.table((Seat(roles.actor, strategists[name]()),))
        report(measure(name, table, scenarios, keys))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog='python -m epo_jax.tools.bargain_ceiling', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='bargain:words', help='a preset of bargaining in words')
    parser.add_argument('--games', type=int, default=64, help='number of training scenarios')
    parser.add_argument('--show', type=int, default=2, help='number of games whose advice and moves are printed')
    parser.add_argument('--conditions', default='none,random,prompted,oracle')
    args = parser.parse_args()
    config, domain = prepare(load_config(args.config))
    config.rollout.batch = args.games
    train, _ = splits(domain.scenarios(config.scenarios, config.environment), False)
    scenarios = draw_scenarios(train, args.games, 1, 0, config.seed)
    with Progress(0) as progress:
        exp = build_experiment(config, make_mesh(config.mesh), domain, None, progress)

        def report(row: Row) -> None:
            error = row.outcome.std(ddof=1) / len(row.outcome) ** 0.5
            told = f', advice followed {np.mean(row.followed):.0%} of {len(row.followed)}' if row.followed else ''
            progress.line(f'{row.condition}: {10 * row.outcome.mean():.2f} ± {10 * error:.2f}{told}')
            for game in row.spoken[:args.show]:
                progress.line('  ' + ' | '.join(f'{advice} -> {move}' for advice, move in game))

        compare(exp, scenarios, config.seed, args.conditions.split(','), report)
        game = Bargain('family', config.environment.rounds)
        progress.line(f'best reply: {10 * float(optimum.best_rewards(game, game.encode(scenarios)).mean()):.2f}')


if __name__ == '__main__':
    main()
