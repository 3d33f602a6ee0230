"""The parts of one self-play iteration, called from a host loop: who plays whom, collect, judge, update.

`experiment.run_iteration` puts them together. compiled.py does the same in one program.

Axis letters: E episodes of a match, S seats, N trained conversations, T turns of one seat.
"""

import dataclasses
from typing import Any, Mapping, Optional, Sequence

import jax
from ml_collections import ConfigDict
import numpy as np

from epo_jax.agents.base import Player, Reasoning, Seat
from epo_jax.agents.remote import Remote
from epo_jax.envs.base import Domain, Environment
from epo_jax.envs.host import HostEnvironment
from epo_jax.models.layout import sampling_params
from epo_jax.overlap import Game, concurrently, play
from epo_jax.results import MatchResult, mean_metrics
from epo_jax.rewards.outcome import load_outcome, with_outcome
from epo_jax.rewards.process import Readings, Verdict, assess_episodes
from epo_jax.rewards.prompts import encode_prompts, judge_prompts
from epo_jax.rewards.remote_judge import RemoteJudge, to_readings
from epo_jax.rl import selfplay
from epo_jax.rl.batching import batches
from epo_jax.rl.credit import assign
from epo_jax.rl.credit.assign import Credit, CreditRules
from epo_jax.rl.learner import Batch, Learner, TrainState
from epo_jax.rl.observe import observe
from epo_jax.rl.selfplay import Match, RunState
from epo_jax.rl.trajectory import Trajectory, trained_rows, trajectories
from epo_jax.roles import Roles
from epo_jax.rollout import Table, episode_keys, max_seat_turns
from epo_jax.runtime.hosts import fetch
from epo_jax.runtime.progress import Progress
from epo_jax.runtime.timing import Stopwatch
from epo_jax.text import tokenizer as text
from epo_jax.text.messages import conversation

# What asks an actor to reason before it acts, and what surrounds its reasoning where it acts.
REASONING = (
    '\nBefore you act, think: in one or two sentences, write what matters now and what to do next. Do not act yet.',
    '\nYou thought: ', '\nNow act.\n')


@dataclasses.dataclass
class Experiment:
    """Everything that a run builds once and uses in every iteration.

    Attributes:
      config, domain, roles, learner: the parts of the run.
      progress, watch: report progress and measure time.
      shardings: shardings of the parameters that are sampled with.
      remote: the client of the endpoints; None where all models are local.
    """

    config: ConfigDict
    domain: Domain
    roles: Roles
    learner: Learner
    progress: Progress
    watch: Stopwatch
    shardings: Any
    remote: Optional[Remote] = None
    _counted: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def base(self) -> Any:
        """Return the frozen parameters under an adapter; None where the whole model is trained."""
        return self.roles.strategist.params if self.learner.lora else None

    @property
    def credit_rules(self) -> CreditRules:
        """Return how the configuration assigns credit."""
        sampling = self.roles.strategist_agent.sampling
        return assign.from_config(self.config.reward, self.config.credit, sampling.stop + sampling.closing)

    @property
    def reference(self) -> Any:
        """Return the parameters that a divergence compares with; None where there is no divergence."""
        needed = self.credit_rules.needs('reference') or self.learner.objective.needs('reference')
        return self.params_before_training() if needed else None

    def sampling_params(self, trained: Any) -> Any:
        """Return trained parameters in the form in which a strategist samples."""
        params = sampling_params(trained, self.learner.lora, self.roles.strategist.dtype, self.base)
        return params if self.learner.lora else jax.device_put(params, self.shardings)

    def params_before_training(self) -> Any:
        """Return the parameters with which training starts, in the form in which a strategist samples."""
        roles = self.roles
        return roles.strategist.params if roles.adapter is None else self.sampling_params(roles.adapter)

    def matches(self, state: RunState, iteration: int) -> list[tuple[Match, Table]]:
        """Return the matches of an iteration and their tables."""
        config = self.config
        # A compiled iteration takes the policy's parameters from the training state.
        policy = None if config.rollout.compiled else self.sampling_params(state.train.params)
        return [
            (match, self.table(tuple(
                self.seat(kind, kind == 'policy', policy, state.snapshots, iteration) for kind in match.kinds),
                config.rollout.group))
            for match in selfplay.matches(config.seats, config.rollout.episodes, config.rollout.group)]

    def seat(self, kind: str, ours: bool, policy: Any, snapshots: Sequence[Any], iteration: int) -> Seat:
        """Return a seat.

        Args:
          kind: its strategist, see `selfplay.KINDS`.
          ours: whether the seat is trained or tested, so that the actor plays it; the partner plays the others.
          policy: the parameters in training, for the kind 'policy'.
          snapshots: earlier parameters, for the kinds 'snapshot' and 'pool'.
          iteration: its number, from which 'pool' draws.
        """
        roles = self.roles
        actor = roles.actor if ours else roles.partner
        if kind == 'none':
            return Seat(actor)
        if kind == 'react':
            encode = lambda part: tuple(text.encode(actor.tokenizer, part))
            return Seat(actor, roles.reasoner, reasoning=Reasoning(*map(encode, REASONING)))
        if kind not in selfplay.KINDS:
            return Seat(actor, roles.advisors[kind])
        if kind == 'policy':
            params = policy
        elif kind == 'prompted' or not snapshots:  # the first snapshot is the model before training
            params = self.params_before_training()
        else:
            last = len(snapshots) - 1
            index = last if kind == 'snapshot' else selfplay.draw_snapshot(self.config.seed, iteration, last + 1)
            params = self.sampling_params(snapshots[index])
        strategist = Player(roles.strategist_agent, params, roles.strategist.tokenizer)
        return Seat(actor, strategist, trained=kind == 'policy')

    def table(self, seats: tuple[Seat, ...], group: int = 1) -> Table:
        """Return a table for some seats."""
        return Table(self._environment(seats), seats, group, self.roles.strategist_agent.width)

    def _environment(self, seats: tuple[Seat, ...]) -> Environment:
        config, domain = self.config, self.domain
        if config.rollout.compiled or domain.text_environment is None:
            return domain.device_environment(
                config.environment, seats[0].actor.tokenizer, config.rollout.view_tokens)
        return HostEnvironment(domain.text_environment(config.environment), seats, config.rollout.view_tokens,
                               config.environment.timeout or None)

    def collect(self, matches: Sequence[tuple[Match, Table]], scenarios: Sequence[Any],
                iterations: Sequence[int]) -> list[MatchResult]:
        """Play the episodes of matches, at the same time where they wait for endpoints.

        Args:
          matches: each with its table.
          scenarios: by the number of an episode.
          iterations: of every match, for its random keys.
        """
        games = [Game(table, [scenarios[number] for number in match.episodes],
                      episode_keys(self.config.seed, iteration, np.array(match.episodes)))
                 for (match, table), iteration in zip(matches, iterations, strict=True)]
        count = lambda tokens: 0 if tokens is None else int(np.sum(np.asarray(tokens.length)))
        with self.watch('rollout'), self.progress.phase('rollout', unit='turns') as phase:
            played = play(games, self.config.rollout.batch, self._parts(games), on_turn=lambda turn: phase.advance(
                int(np.sum(turn.live)), count(turn.strategy) + count(turn.message)))
        return [MatchResult(table, match, game.scenarios, *found)
                for (match, table), game, found in zip(matches, games, played, strict=True)]

    def _parts(self, games: Sequence[Game]) -> int:
        """Return in how many parts games are played; several processes must run the same programs in one order."""
        if jax.process_count() > 1:
            return 1
        if self.config.rollout.parts:
            return self.config.rollout.parts
        return 1 if all(player.agent.on_device for game in games for player in game.table.players) else 2

    def judge(self, results: Sequence[MatchResult], process: str, every: bool = False) -> list[MatchResult]:
        """Add the verdict on every episode and seat of matches, at the same time where judges are endpoints.

        Args:
          results: what was played.
          process: the method of the process reward.
          every: whether a remote judge also rates seats that the environment has rewarded, for its other dimensions.
        """
        remote = any(isinstance(judge, RemoteJudge) for judge in (self.roles.judge, self.roles.process_judge))
        threads = len(results) if remote and jax.process_count() == 1 else 1
        with self.watch('judge'), self.progress.phase('judge', unit='turns'):
            return concurrently(lambda result: self._judge(result, process, every), results, threads)

    def _judge(self, result: MatchResult, process: str, every: bool) -> MatchResult:
        roles, outcome = self.roles, self.config.reward.outcome
        turns = max_seat_turns(result.table.env)
        texts = result.texts()
        prompts = judge_prompts(result.table, result.episodes, texts)
        if outcome not in ('judge', 'environment'):
            prompts = with_outcome(prompts, load_outcome(outcome))
        rate = outcome == 'judge' and any(prompt.reward is None for prompt in prompts)
        given = Readings()
        if isinstance(roles.judge, RemoteJudge) and outcome == 'judge':
            wanted = np.array([prompt.complete and (every or prompt.reward is None) for prompt in prompts])
            ratings = roles.judge.rate(texts, wanted.reshape(-1, len(texts)).any(axis=0).tolist())
            given = to_readings(ratings, self.domain.rubric)
        if isinstance(roles.process_judge, RemoteJudge) and process == 'critical':
            conversations = self._conversations(result)
            given = dataclasses.replace(given, critical=lambda outcomes: roles.process_judge.critical(
                conversations, outcomes, self.config.environment.name, turns))
        local = lambda judge: None if isinstance(judge, RemoteJudge) else judge
        process_judge = None if roles.process_judge is roles.judge else local(roles.process_judge)
        verdict = assess_episodes(
            lambda judge, method, read: encode_prompts(judge, prompts, turns, method, read),
            local(roles.judge), process_judge, process, rate, given)
        return dataclasses.replace(result, verdict=verdict)

    def _conversations(self, result: MatchResult) -> list[Sequence[str]]:
        """Return the conversations of the trained strategists as texts, seat-major; () for every other seat."""
        language, talks = self.roles.strategist, []
        for rows in result.episodes.conversations:
            for e in range(len(result.scenarios)):
                talks.append(() if rows is None else conversation(
                    rows.ids[e, :rows.length[e]].tolist(), rows.turn[e, :rows.length[e]].tolist(), language.tokenizer,
                    language.chat))
        return talks

    def request_metrics(self) -> dict[str, float]:
        """Return what endpoints were asked since the last call, by role, and what the answers cost."""
        metrics: dict[str, float] = {}
        for judge in {id(judge): judge for judge in (self.roles.judge, self.roles.process_judge)}.values():
            metrics |= judge.take_metrics() if isinstance(judge, RemoteJudge) else {}
        usage = {} if self.remote is None else {
            role: {name: value for name, value in dataclasses.asdict(used).items() if name != 'losses'}
            for role, used in self.remote.usage().items()}
        for role, used in usage.items():
            before = self._counted.get(role, {})
            metrics |= {f'requests/{role}/{name}': value - before.get(name, 0) for name, value in used.items()}
        self._counted = usage
        return metrics

    def print_requests(self) -> None:
        """Print what was asked of endpoints since the run was started."""
        usage = {} if self.remote is None else self.remote.usage()
        if usage:
            names = [field.name for field in dataclasses.fields(next(iter(usage.values()))) if field.name != 'losses']
            self.progress.table('Requests to endpoints', ['role', *(name.replace('_', ' ') for name in names)], [
                [role, *(getattr(used, name) for name in names)] for role, used in sorted(usage.items())])
        for role, used in sorted(usage.items()):
            for reason, count in used.losses.most_common(5):
                self.progress.line(f'{role}: {count} without an answer: {reason}')

    def trained(self, results: Sequence[MatchResult]) -> tuple[Trajectory, Verdict]:
        """Return the trained conversations of all matches, and the verdict on them."""
        rows = [trajectories(result.table, result.episodes, np.array(result.match.episodes),
                             self.config.rollout.group) for result in results]
        # The judge's comments are text for the records, and no program takes them.
        verdicts = [result.verdict.replace(comments=None)[trained_rows(result.table, len(result.scenarios))]
                    for result in results]
        join = lambda *xs: np.concatenate(xs)
        return jax.tree.map(join, *rows), jax.tree.map(join, *verdicts)

    def observe(self, train: TrainState, rows: Trajectory) -> dict[str, np.ndarray]:
        """Return what credit and loss need besides (NumPy), see `observe.observe`."""
        rules, learner = self.credit_rules, self.learner
        policy = self.sampling_params(train.params) if rules.needs('entropy') else None
        with self.watch('learn'):
            return jax.tree.map(np.asarray, fetch(observe(
                self.roles.strategist_agent.model, rows, rules, learner.objective, policy, self.reference,
                learner.chunk, learner.micro_batch)))

    def assign_credit(self, rows: Trajectory, verdict: Verdict, memory: Any,
                      observed: Mapping[str, np.ndarray]) -> tuple[Credit, Any]:
        """Return rewards and advantages of every turn (NumPy), and the memory of the method after it."""
        credit, memory = assign.assign(verdict, rows, self.credit_rules, {**observed, 'memory': memory})
        return Credit(*map(np.asarray, credit)), memory

    def update(self, train: TrainState, rows: Trajectory, credit: Credit, observed: Mapping[str, np.ndarray],
               iteration: int) -> tuple[TrainState, dict[str, float]]:
        """Take all gradient steps of an iteration; return the new state and the mean metrics of the steps."""
        c = self.config.learner
        reference = observed.get('reference') if self.learner.objective.needs('reference') else None
        data = Batch(rows.ids, rows.turn, rows.logprob, credit.advantage, credit.valid, reference)
        steps = []
        with self.watch('learn'):
            parts = batches(data, c.batch, c.epochs, (self.config.seed, iteration), c.length_bucket)
            with self.progress.phase('learn', len(parts), 'steps') as phase:
                for batch in parts:
                    train, metrics = self.learner.step(train, batch, self.base)
                    steps.append(metrics)
                    phase.advance(1, batch.ids.size)
                return train, mean_metrics(steps, iteration)
