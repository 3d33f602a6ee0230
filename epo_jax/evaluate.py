"""Evaluate strategists without training.

    python -m epo_jax.evaluate --config=sotopia:partner --out=runs/evaluation --config.evaluation.episodes=450
    python -m epo_jax.evaluate --config=configs/sotopia.py:llama3_8b --out=OUT --workdir=RUN     (the policy of a run)
    python -m epo_jax.evaluate --config=sotopia:partner --out=OUT --dry_run     (prints what it would ask and cost)

The keys of evaluation say what is compared: conditions (none, prompted, policy, react, or any model as the strategist),
scenarios, partner and repetitions. Every batch of finished episodes is written at once. A command that was stopped or
killed continues when it is started again with the same flags, and ends with the same table. Every answer of an endpoint
is on disk before it is used, and is never asked for again; only a kill loses the answers that are on their way at that
moment, at most remote.concurrency of them.
"""

import functools
import pathlib
from typing import Any, Optional, Sequence

from absl import app, flags
from ml_collections import ConfigDict

from epo_jax.runtime import command

SAME_AS_RUN = ('model', 'lora', 'strategist')  # groups of keys


def run(config: ConfigDict, out: str, workdir: Optional[str] = None, dry_run: bool = False) -> list[Any]:
    """Evaluate the conditions of a configuration; continue an evaluation that was stopped.

    Args:
      config: the configuration.
      out: directory that gets the episodes and the scores.
      workdir: of the run whose last checkpoint is the condition 'policy'.
      dry_run: whether to print what would be asked of endpoints at most, and to do nothing else.

    Returns:
      The rows of the table; [] for a dry run.

    Raises:
      InputError: an input cannot be used.
      Stopped: SIGTERM or SIGINT arrived; the same call continues.
      NoAccess, BudgetSpent, ReplayMiss: an endpoint cannot be used any further.
    """
    from epo_jax import evaluation, experiment, requests
    from epo_jax.runtime import hosts
    from epo_jax.runtime.errors import InputError, Stopped
    from epo_jax.runtime.parallel import make_mesh
    from epo_jax.runtime.progress import Progress
    from epo_jax.runtime.stopping import StopSignals
    from epo_jax.workdir import own_workdir

    config, domain = experiment.prepare(without_process_reward(config))
    conditions = config.evaluation.conditions
    if 'policy' in conditions and not workdir:
        raise InputError("evaluation.conditions: 'policy' needs --workdir, the run whose policy is evaluated; without "
                         'one, choose other conditions')
    if 'pool' in (*conditions, config.evaluation.partner):
        raise InputError("evaluation: 'pool' needs the snapshots of a run in training; choose another condition or "
                         'partner')
    scenarios = [s for s in domain.scenarios(config.scenarios, config.environment) if s.split == 'held_out']
    if not scenarios or not config.evaluation.episodes:
        raise InputError('there is nothing to evaluate: '
                         + ('evaluation.episodes is 0' if scenarios else "no scenario has split 'held_out'"))
    scenarios = evaluation.select(scenarios, config, domain)
    out = pathlib.Path(out).absolute()
    with Progress(1) as progress:
        if dry_run:
            requests.print_estimate(config, domain, scenarios, progress)
            return []
        with (own_workdir(out, config, evaluation.WITHOUT_EFFECT) as save_config,
              experiment.open_remote(config, out) as remote):
            exp = experiment.build_experiment(config, make_mesh(config.mesh), domain, remote, progress)
            policy_name, policy = _policy(exp, workdir) if workdir else ('none', None)
            save_config()
            with StopSignals(progress.line, 'this batch of episodes') as signals:
                def stop() -> None:
                    if hosts.any_process(signals.requested):
                        raise Stopped('the finished episodes are saved, and the same command continues')

                result = evaluation.run_evaluation(
                    exp, policy, (), scenarios, out, 'evaluation', policy_name, conditions, stop)
            evaluation.print_result(exp, result, scenarios)
            exp.print_requests()
            progress.line(f'episodes: {out / "episodes"}')
            return list(result.rows)


def without_process_reward(config: ConfigDict) -> ConfigDict:
    """Return the configuration without the process reward, which only training needs, and its judge."""
    config = config.copy_and_resolve_references()
    config.process.model = ''
    config.reward.update(process='none', combine='sum')
    return config


def _policy(exp: Any, workdir: str) -> tuple[str, Any]:
    """Return the name and the parameters of a run's policy, after its last checkpoint.

    Raises:
      InputError: the run has another model, adapter or strategist than the configuration, or no checkpoint.
    """
    from epo_jax import runs
    from epo_jax.config import from_json, to_json
    from epo_jax.runtime.errors import InputError

    saved = runs.read_config(workdir)
    groups = ('model',) if runs.is_offline(saved) else SAME_AS_RUN
    given, trained = (from_json(to_json(config)) for config in (exp.config, saved))
    differ = [f'{group}.{key}' for group in groups for key, value in given[group].items()
              if trained[group].get(key) != value]
    if differ:
        raise InputError(f'--workdir: the run in {workdir} has other values of {", ".join(differ)} than the '
                         'configuration; pass those of the run')
    step, params = runs.restore_params(workdir, saved, runs.load_run_language(saved))
    return f'{pathlib.Path(workdir).name} after {step}', exp.sampling_params(params)


def main() -> None:
    """Run the command, see the module docstring.

    Its flags are defined here, so that a program with flags of its own can import `run`.
    """
    from epo_jax import main as training

    out = flags.DEFINE_string('out', None, 'Directory of the evaluation; one that it already contains is continued.')
    dry_run = flags.DEFINE_bool('dry_run', False, 'Print the largest number of requests, tokens and dollars, and stop.')

    def evaluate(argv: Sequence[str]) -> None:
        training.start(argv)
        run(training.CONFIG.value, out.value, training.WORKDIR.value, dry_run.value)
        if not dry_run.value:
            training.report(out.value)

    app.run(evaluate, flags_parser=functools.partial(training.parse_flags, required=('config', 'out')))


if __name__ == '__main__':
    command.run(main)
