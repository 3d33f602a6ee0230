"""Export the strategist of a run as a Hugging Face folder: safetensors, tokenizer and chat template.

    python -m epo_jax.export --workdir=runs/offline --out=strategist
    python -m epo_jax.export --workdir=runs/quickstart --out=strategist --dtype=bfloat16
    python -m epo_jax.export --workdir=runs/lora --out=adapter              # for the PEFT library
    python -m epo_jax.export --workdir=runs/lora --out=strategist --merged

`transformers` (AutoModelForCausalLM, AutoTokenizer) and serving engines load the folder. Offline and online runs can
be exported. If a run trained an adapter, only the adapter is written, or with --merged the whole model. The folder
appears under its name only once it is complete.
"""

import argparse
import json
import os
from pathlib import Path
import shutil
from typing import Any, Optional, Sequence

from epo_jax.runtime import command
from epo_jax.runtime.errors import InputError

DTYPES = ('float32', 'bfloat16', 'float16')


class ExportError(InputError):
    """An export that is impossible as requested. The message says why."""


def export(workdir: str, out: str, dtype: str = 'float32', step: Optional[int] = None,
           merged: bool = False) -> dict[str, Any]:
    """Write the parameters of a checkpoint and everything that is needed to use them.

    Args:
      workdir: Directory of the run.
      out: Folder to create; if it exists, it must be empty.
      dtype: One of `DTYPES`. Parameters are trained in float32, and an adapter is always written in float32.
      step: Step of the checkpoint; None for the last one.
      merged: Whether to merge a trained adapter into its base and write the whole model.

    Returns:
      A dict with the step of the checkpoint ('step'), the number of parameters ('parameters') and the path of the
      model that was trained ('model').

    Raises:
      ExportError: If the folder is not empty, or if an option does not apply to the run.
      RunError: If there is no such run, or if it has no checkpoint.
      CheckpointError: If the checkpoint is missing or damaged.
      WeightsError: If the base model of an adapter cannot be read.
    """
    # Imported here so that --help does not wait for JAX.
    import jax
    import jax.numpy as jnp

    from epo_jax import runs
    from epo_jax.models import hub, peft

    config, target = runs.read_config(workdir), Path(out)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ExportError(f'{target} already exists; choose another --out')
    lora = runs.lora_of(config)
    if merged and lora is None:
        raise ExportError(f'{workdir} trained the whole model; there is no adapter to merge')
    if lora is not None and not merged and dtype != 'float32':
        raise ExportError(f'an adapter is always written in float32; use --merged to write the whole model in {dtype}')
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
            base, name = Path(config.model.path), hub.parse(config.model.path)
            peft.save(unfinished, lora, params,
                      str(base.absolute()) if base.is_dir() else name.repository if name and not name.file else '')
        language.tokenizer.chat_template = runs.chat_template_text(config, language.tokenizer)
        language.tokenizer.save_pretrained(unfinished)
        _make_portable(unfinished / 'tokenizer_config.json', language.config.max_positions)
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {'step': step, 'parameters': sum(x.size for x in jax.tree.leaves(params)), 'model': config.model.path}


def _save_model(folder: Path, language, params) -> None:
    """Write the parameters, the model's config and its generation config."""
    from epo_jax.models import weights
    tokenizer, chat = language.tokenizer, language.chat
    ends = list(chat.stop)  # those of the base model included
    weights.save(folder, language.config, params, bos_token_id=tokenizer.bos_token_id,
                 eos_token_id=ends if len(ends) > 1 else ends[0])
    generation = {'bos_token_id': tokenizer.bos_token_id, 'eos_token_id': ends,
                  'pad_token_id': tokenizer.pad_token_id}
    (folder / 'generation_config.json').write_text(json.dumps(
        {name: value for name, value in generation.items() if value is not None}, indent=2) + '\n')


def _make_portable(path: Path, max_positions: int) -> None:
    """Rewrite a tokenizer config so that older versions of transformers can load it, too."""
    content = json.loads(path.read_text(encoding='utf-8'))
    special = content.pop('extra_special_tokens', None)
    content |= {'tokenizer_class': 'PreTrainedTokenizerFast', 'model_max_length': max_positions}
    content.pop('backend', None)
    if special:
        content['additional_special_tokens'] = special
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command, see the module docstring."""
    parser = argparse.ArgumentParser(prog='python -m epo_jax.export', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True, help='directory of the run')
    parser.add_argument('--out', required=True, help='folder to create')
    parser.add_argument('--dtype', default='float32', choices=DTYPES, help='dtype of the parameters')
    parser.add_argument('--step', type=int, help='step of the checkpoint (default: the last one)')
    parser.add_argument('--merged', action='store_true', help='merge a trained adapter and write the whole model')
    args = parser.parse_args(argv)
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
    with command.one_line_errors(ValueError):
        exported = export(args.workdir, args.out, args.dtype, args.step, args.merged)
    print(f'wrote {args.out}: {exported["parameters"] / 1e6:.3g}M parameters in {args.dtype} from step '
          f'{exported["step"]} of {args.workdir}, which trained {exported["model"]}')


if __name__ == '__main__':
    command.run(main)
