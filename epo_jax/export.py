"""Exports the strategist of a run as a Hugging Face folder: safetensors, tokenizer, chat template.

    python -m epo_jax.export --workdir=runs/offline --out=strategist
    python -m epo_jax.export --workdir=runs/quickstart --out=strategist --dtype=bfloat16
    python -m epo_jax.export --workdir=runs/lora --out=adapter              # for the PEFT library
    python -m epo_jax.export --workdir=runs/lora --out=strategist --merged

What is written loads with `transformers` (AutoModelForCausalLM, AutoTokenizer) and in serving engines. The run may
be an offline one or one with rollouts; of one that trained an adapter, the adapter alone is written, or with --merged
the whole model. The folder appears under its name only when it is complete.
"""

import argparse
import json
import os
from pathlib import Path
import shutil
import sys
from typing import Any, Optional, Sequence

from epo_jax.runtime.errors import InputError

DTYPES = ('float32', 'bfloat16', 'float16')


class ExportError(InputError):
    """A run that cannot be exported; the message says why."""


def export(workdir: str, out: str, dtype: str = 'float32', step: Optional[int] = None,
           merged: bool = False) -> dict[str, Any]:
    """Writes the parameters of a run's checkpoint with what is needed to use them.

    Args:
      workdir: of the run.
      out: the folder; it must not exist yet, or be empty.
      dtype: one of DTYPES; the parameters are trained in float32, and an adapter is written so.
      step: of the checkpoint; None: the last one.
      merged: a trained adapter is added to its base, and the whole model is written.

    Returns:
      what was exported: step, parameters (how many were written), model.

    Raises:
      ExportError: there is no such run or checkpoint, the folder is in use, or an option does not go with the run.
      CheckpointError, WeightsError, ...: a file is damaged or missing.
    """
    # Only here: --help must not wait for JAX.
    import jax
    import jax.numpy as jnp

    from epo_jax import runs
    from epo_jax.models import peft

    config, target = runs.read_config(workdir), Path(out)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ExportError(f'{target} already exists')
    lora = runs.lora_of(config)
    if merged and lora is None:
        raise ExportError(f'{workdir} trained the whole model; there is no adapter to merge')
    if lora is not None and not merged and dtype != 'float32':
        raise ExportError(f'an adapter is written in float32; {dtype} goes with a merged model')
    language = runs.load_run_language(config)
    step, params = runs.restore_params(workdir, config, language, step)
    if merged:
        params = lora.merge(language.with_params(jnp.float32, config.seed).params, params)
    params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params)

    unfinished = target.with_name(f'.{target.name}.{os.getpid()}.unfinished')
    try:
        if lora is None or merged:
            _save_model(unfinished, language, params)
        else:
            base = Path(config.model.path)
            peft.save(unfinished, lora, params, str(base.absolute()) if base.is_dir() else '')
        language.tokenizer.chat_template = runs.chat_template_text(config, language.tokenizer)
        language.tokenizer.save_pretrained(unfinished)
        _make_portable(unfinished / 'tokenizer_config.json', language.config.max_positions)
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {'step': step, 'parameters': sum(x.size for x in jax.tree.leaves(params)), 'model': config.model.path}


def _save_model(folder: Path, language, params) -> None:
    from epo_jax.models import weights
    tokenizer, chat = language.tokenizer, language.chat
    weights.save(folder, language.config, params, bos_token_id=tokenizer.bos_token_id, eos_token_id=chat.end)
    generation = {'bos_token_id': tokenizer.bos_token_id, 'eos_token_id': list(chat.stop),
                  'pad_token_id': tokenizer.pad_token_id}
    (folder / 'generation_config.json').write_text(json.dumps(
        {name: value for name, value in generation.items() if value is not None}, indent=2) + '\n')


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
    parser.add_argument('--merged', action='store_true', help='the whole model where an adapter was trained')
    args = parser.parse_args(argv)
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    from epo_jax.runtime.checkpoint import CheckpointError
    try:
        done = export(args.workdir, args.out, args.dtype, args.step, args.merged)
    except (ExportError, CheckpointError, ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    print(f'wrote {args.out}: {done["parameters"] / 1e6:.3g}M parameters in {args.dtype}, as trained from '
          f'{done["model"]} in {args.workdir} after step {done["step"]}')


if __name__ == '__main__':
    main()
