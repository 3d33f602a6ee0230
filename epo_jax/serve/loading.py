"""Models and strategists of runs, by path, ready to sample."""

import dataclasses
from pathlib import Path
from typing import Any, Optional

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from epo_jax import runs
from epo_jax.defaults import default_config
from epo_jax.language import Language, activation_dtype, load_language
from epo_jax.models.layout import unstack
from epo_jax.runtime.parallel import make_mesh


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model that can be served.

    Attributes:
      name: what clients call it.
      version: what identifies its weights: the path of the model, and the step of the run.
      language: the model with its parameters, in the layout that samples.
      template: its chat template, in Jinja; None if it has none.
      config: the configuration of the run; None for a model that no run of this package trained.
    """

    name: str
    version: str
    language: Language
    template: Optional[str]
    config: Optional[ConfigDict] = None

    @property
    def strategist(self) -> ConfigDict:
        """Return how the strategist of the run samples; the defaults for a model, or for a run without rollouts."""
        if self.config is not None and 'strategist' in self.config:
            return self.config.strategist
        return default_config().strategist

    @property
    def environment(self) -> Optional[ConfigDict]:
        """Return the environment in which the run trained; None if there is none."""
        return self.config.environment if self.config is not None and 'environment' in self.config else None


def load(path: str, chat_template: str = '', dtype: str = 'auto', step: Optional[int] = None) -> Loaded:
    """Load a model, or the strategist of a run.

    Args:
      path: a model as in `language.load_language`, or the workdir of a run. The adapter of a run is merged into its
        model.
      chat_template: a template as in `text.chat.chat_segments`, for a model; a run has its own.
      dtype: of parameters and activations, see `language.activation_dtype`.
      step: a checkpoint of the run; None for the last one.

    Raises:
      InputError: there is no such model or run, or it cannot be used.
      CheckpointError: the checkpoint is missing or damaged.
    """
    name = Path(path).name.removesuffix('.gguf') or path
    if not is_run(path):
        language = load_language(path, chat_template, activation_dtype(dtype), make_mesh((1, -1, 1))).with_params()
        config = ConfigDict({'model': {'chat_template': chat_template}})
        return Loaded(name, language.path, language, runs.chat_template_text(config, language.tokenizer))
    config = runs.read_config(path)
    template_of = runs.load_run_language(config)
    step, params = runs.restore_params(path, config, template_of, step)
    lora = runs.lora_of(config)
    if lora is not None:
        params = lora.merge(template_of.with_params(jnp.float32, config.seed).params, params)
    language = dataclasses.replace(template_of, dtype=activation_dtype(dtype), stacked=False)
    language = dataclasses.replace(language, params=_sampled(params, language.dtype))
    return Loaded(name, f'{config.model.path} after step {step} of {path}', language,
                  runs.chat_template_text(config, language.tokenizer), config)


def is_run(path: str) -> bool:
    """Return whether a path is the workdir of a run, and not a model."""
    return Path(path).is_dir() and (Path(path) / 'checkpoints').is_dir()


def _sampled(params: Any, dtype: Any) -> Any:
    """Return trained parameters in the layout and dtype that sample; the trained ones are freed."""
    return jax.block_until_ready(unstack(params, dtype))
