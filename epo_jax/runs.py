"""Read what a training run saved in its workdir: the configuration, the model and the trained parameters."""

from pathlib import Path
import sys
from typing import Any, Optional

from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from epo_jax import roles
from epo_jax.config import CONFIG_FILE, ConfigError, from_json
from epo_jax.envs.base import load_domain
from epo_jax.language import Language, activation_dtype, load_language
from epo_jax.models.lora import LoRA
from epo_jax.rl import learner as learning, selfplay
from epo_jax.runtime.checkpoint import Checkpoints
from epo_jax.runtime.errors import InputError
from epo_jax.runtime.parallel import make_mesh
from epo_jax.text.chat import TEMPLATES


class RunError(InputError):
    """A workdir that does not hold a readable run."""


def read_config(workdir: str) -> ConfigDict:
    """Read the configuration of a run.

    Raises:
      RunError: If the workdir holds no readable configuration.
    """
    path = Path(workdir) / CONFIG_FILE
    try:
        return ConfigDict(from_json(path.read_text(encoding='utf-8')))
    except (OSError, ConfigError) as error:
        raise RunError(f'cannot read {path} ({error}); is {workdir} the workdir of a run?') from error


def is_offline(config: ConfigDict) -> bool:
    """Return whether the run trained on a file of conversations rather than on rollouts."""
    return 'data' in config


def lora_of(config: ConfigDict) -> Optional[LoRA]:
    """Return the adapter that the run trained, or None if it trained the whole model."""
    return roles.adapter(config) if 'lora' in config else None


def load_run_language(config: ConfigDict) -> Language:
    """Load the strategist's model of a run, in the stacked layout and without parameters."""
    domain = load_domain(config.environment.name) if 'environment' in config else None
    return load_language(config.model.path, config.model.chat_template, activation_dtype(config.model.dtype),
                         make_mesh((1, -1, 1)), domain, stacked=True)


def restore_params(workdir: str, config: ConfigDict, language: Language, step: Optional[int] = None) -> tuple[int, Any]:
    """Restore what a run trained from one of its checkpoints.

    Args:
      workdir: Directory of the run.
      config: Its configuration, see `read_config`.
      language: Its model, see `load_run_language`.
      step: Step of the checkpoint; None for the last one that is not damaged.

    Returns:
      The step and the float32 parameters of the model (stacked layout) or of the adapter.

    Raises:
      RunError: If the run has not saved a checkpoint yet.
      CheckpointError: If the checkpoint is missing or damaged.
    """
    learner = learning.from_config(config.learner, language.learner(config.model.remat), 1, lora_of(config))
    train_state = learner.abstract_state()

    def abstract_state(step: int) -> Any:
        if is_offline(config):
            return train_state
        return selfplay.RunState(train_state, (train_state.params,) * selfplay.pool_size(config, step),
                                 selfplay.empty_memory(config))

    with Checkpoints(workdir, read_only=True) as checkpoints:
        if step is None:
            restored = checkpoints.resume(abstract_state, lambda line: print(line, file=sys.stderr))
            if restored is None:
                raise RunError(f'{workdir} holds no checkpoint yet')
            step, state, _ = restored
        else:
            state, _ = checkpoints.restore(step, abstract_state(step))
    return step, (state if is_offline(config) else state.train).params


def chat_template_text(config: ConfigDict, tokenizer: PreTrainedTokenizerFast) -> Optional[str]:
    """Return the Jinja chat template that the run used, or None if its model has none."""
    name = config.model.chat_template
    if not name:
        template = tokenizer.chat_template
        return template['default'] if isinstance(template, dict) else template
    return TEMPLATES[name] if name in TEMPLATES else Path(name).read_text(encoding='utf-8')
