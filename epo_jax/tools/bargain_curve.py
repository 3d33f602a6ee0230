"""Plot the outcome of every iteration of a bargaining run against the best possible outcomes.

    python -m epo_jax.tools.bargain_curve --workdir=runs/bargain --out=curve.svg
"""

import argparse
from pathlib import Path
import sys

from epo_jax.envs.bargain.game import Bargain
from epo_jax.runs import RunError, read_config
from epo_jax.runtime.files import read_jsonl
from epo_jax.tools.bargain_regret import compare, known_scenarios


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog='python -m epo_jax.tools.bargain_curve', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='a run against the family, with its evaluation')
    parser.add_argument('--out', required=True, help='image file to write, .svg or .png')
    args = parser.parse_args()
    workdir = Path(args.workdir)
    try:
        environment = read_config(args.workdir).environment
        game = Bargain('family', environment.rounds)
        metrics = read_jsonl(workdir / 'metrics.jsonl')
        records = read_jsonl(workdir / 'episodes' / 'evaluation.jsonl')
    except (OSError, RunError, ValueError, AttributeError) as error:
        sys.exit(f'error: {workdir} holds no finished run of bargain ({error})')
    policy = next(row for row in compare(records, game, known_scenarios(environment))
                  if row.condition == 'policy')
    import matplotlib  # here, since it takes a second to import
    matplotlib.use('Agg')
    from matplotlib import pyplot
    matplotlib.rcParams.update({'svg.hashsalt': 'epo_jax', 'svg.fonttype': 'none', 'font.size': 11})
    figure, axes = pyplot.subplots(figsize=(7.5, 3.2), layout='constrained')
    axes.plot([row['iteration'] for row in metrics], [row['outcome/mean'] for row in metrics], color='#b36b00',
              linewidth=1, label='training, mean outcome of an iteration')
    axes.axhline(policy.known, color='#888', linestyle=':', label='best policy that knows the opponent')
    axes.axhline(policy.adaptive, color='#444', linestyle='--', label='best policy that sees what the strategist sees')
    axes.plot(metrics[-1]['iteration'], policy.reward, 'o', color='#1f5fa8',
              label=f'evaluation on {policy.games} held-out games')
    axes.set(xlabel='self-play iteration', ylabel='outcome', xlim=(0, 1.02 * metrics[-1]['iteration']), ylim=(0, 0.8))
    axes.legend(loc='lower right', frameon=False, fontsize=9)
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(args.out, metadata={'Date': None} if args.out.endswith('.svg') else None, dpi=150)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
