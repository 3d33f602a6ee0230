"""Exports the strategist of a run as a Hugging Face folder: safetensors, tokenizer, chat template.

    python -m epo_jax.export --workdir=runs/offline --out=strategist
    python -m epo_jax.export --workdir=runs/quickstart --out=strategist --dtype=bfloat16

What is written loads with `transformers` (AutoModelForCausalLM, AutoTokenizer) and in serving engines. The run may
be an offline one or one with rollouts. The folder appears under its name only when it is complete.
"""

import argparse
import json
import os
from pathlib import Path
import shutil
import sys
from typing import Any, Optional, Sequence

DTYPES = ('float32', 'bfloat16', 'float16')


class ExportError(ValueError):
    """A run that cannot be exported; the message says why."""


def export(workdir: str, out: str, dtype: str = 'float32', step: Optional[int] = None) -> dict[str, Any]:
    """Writes the parameters of a run's checkpoint with what is needed to use them.

    Args:
      workdir: of the run.
      out: the folder; it must not exist yet, or be empty.
      dtype: one of DTYPES; the parameters are trained in float32.
      step: of the checkpoint; None: the last one.

    Returns:
      what was exported: step, parameters, model.

    Raises:
      ExportError: there is no such run or checkpoint, or the folder is in use.
      CheckpointError, WeightsError, ...: a file is damaged or missing.
    """
    # Only here: --help must not wait for JAX.
    import jax
    import jax.numpy as jnp

    from epo_jax import offline
    from epo_jax.checkpoint import Checkpoints
    from epo_jax.data.language import read_text
    from epo_jax.models import weights
    from epo_jax.parallel import make_mesh

    config = read_run(workdir)
    target = Path(out)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ExportError(f'{target} already exists')
    tokenizer, chat = read_text(config.model.path, config.model.chat_template)
    mesh = make_mesh((1, -1, 1))
    learner = offline.make_learner(config, 1)
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.latest() if step is None else step
        if step is None:
            raise ExportError(f'{workdir} holds no checkpoint yet')
        state, _ = checkpoints.restore(step, abstract_run(config, learner, mesh, step))
    train = state if 'data' in config else state.train
    params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), train.params)

    unfinished = target.with_name(f'.{target.name}.{os.getpid()}.unfinished')
    try:
        weights.save(unfinished, learner.model.config, params, bos_token_id=tokenizer.bos_token_id,
                     eos_token_id=chat.end)
        tokenizer.chat_template = template_text(config, tokenizer)
        tokenizer.save_pretrained(unfinished)
        _make_portable(unfinished / 'tokenizer_config.json', learner.model.config.max_positions)
        generation = {'bos_token_id': tokenizer.bos_token_id, 'eos_token_id': list(chat.stop),
                      'pad_token_id': tokenizer.pad_token_id}
        (unfinished / 'generation_config.json').write_text(json.dumps(
            {name: value for name, value in generation.items() if value is not None}, indent=2) + '\n')
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {'step': step, 'parameters': learner.model.config.num_params, 'model': config.model.path}


def read_run(workdir: str):
    """The configuration of a run. Raises ExportError: there is none."""
    from ml_collections import ConfigDict

    from epo_jax.config import CONFIG_FILE, ConfigError, from_json
    path = Path(workdir) / CONFIG_FILE
    try:
        return ConfigDict(from_json(path.read_text(encoding='utf-8')))
    except (OSError, ConfigError) as error:
        raise ExportError(f'{path} cannot be read ({error}): is it the workdir of a run?') from error


def abstract_run(config, learner, mesh, step: int):
    """What a checkpoint of the run at a step holds, as shapes."""
    from epo_jax import offline
    train = offline.abstract_state(learner, mesh)
    if 'data' in config:
        return train
    from epo_jax import experiment
    return experiment.RunState(train, (train.params,) * experiment.pool_size(config, step))


def template_text(config, tokenizer) -> str:
    """The chat template that the run used."""
    from epo_jax.text.chat import TEMPLATES
    name = config.model.chat_template
    if not name:
        own = tokenizer.chat_template
        return own['default'] if isinstance(own, dict) else own
    return TEMPLATES[name] if name in TEMPLATES else Path(name).read_text(encoding='utf-8')


def _make_portable(path: Path, longest: int) -> None:
    """Names the tokenizer's class and special tokens as older versions of transformers know them, too."""
    content = json.loads(path.read_text(encoding='utf-8'))
    special = content.pop('extra_special_tokens', None)
    content |= {'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': longest}
    content.pop('backend', None)
    if special:
        content['additional_special_tokens'] = special
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.export', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='of the run')
    parser.add_argument('--out', required=True, help='the folder to make')
    parser.add_argument('--dtype', default='float32', choices=DTYPES, help='of the parameters')
    parser.add_argument('--step', type=int, help='of the checkpoint; default: the last one')
    args = parser.parse_args(argv)
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    from epo_jax.checkpoint import CheckpointError
    try:
        done = export(args.workdir, args.out, args.dtype, args.step)
    except (ExportError, CheckpointError, ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    print(f'wrote {args.out}: {done["parameters"] / 1e6:.1f}M parameters in {args.dtype}, as trained in '
          f'{args.workdir} after step {done["step"]}')


if __name__ == '__main__':
    main()
