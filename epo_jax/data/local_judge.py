"""The critical-turn judge on this machine: `epo_jax.rewards.process` on conversations from a file."""

import itertools
import json
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from epo_jax.data import sharegpt
from epo_jax.language import activation_dtype, load_language
from epo_jax.rewards.judge import Judge
from epo_jax.rewards.process import assess
from epo_jax.rewards.prompts import JudgePrompt, encode_prompts
from epo_jax.runtime.parallel import make_mesh

TURNS = 8  # programs are compiled for multiples of so many turns


class LocalJudge:
    """A model that answers Yes or No for every strategy by its probabilities, `batch` conversations at a time."""

    def __init__(self, model: str, domain: str, capacity: int, batch: int):
        """Loads the model: a Hugging Face folder, a GGUF file, 'smollm2' or 'dummy'.

        Raises:
          FileNotFoundError, WeightsError, TokenizerError, ChatTemplateError: it cannot be had.
        """
        language = load_language(model, '', activation_dtype('auto'), make_mesh((1, -1, 1))).with_params()
        self._judge = Judge(
            model=language.sampler(), params=language.params, tokenizer=language.tokenizer, chat=language.chat,
            capacity=capacity, batch=batch)
        self._domain, self._batch, self._capacity = domain, batch, capacity

    def ask(self, source: sharegpt.Source, items: Iterator[Any], answers: Any,
            report: Callable[[Any, str], None]) -> dict[str, str]:
        """Has every row answered that is not yet; see `epo_jax.label.label_file`."""
        rows = 0
        while group := list(itertools.islice(items, self._batch)):
            # Groups are the same in every run, so that a resumed one computes the same numbers.
            if any(answers.get(item.key, 0) is None for item in group):
                prompts = [judge_prompt(item, source.layout, self._domain) for item in group]
                turns = -(-max(len(item.strategies) for item in group) // TURNS) * TURNS
                conversations = encode_prompts(self._judge, prompts, turns, 'critical', read=False)
                verdict = assess(self._judge, conversations, 'critical', rate=False)
                notes = verdict.notes()
                for n, item in enumerate(group):
                    count = len(item.strategies)
                    if not verdict.valid[n, :count].all():
                        problem = f"does not fit the judge's capacity of {self._capacity} tokens"
                        answers.put(item.key, 0, None, problem, 0.0)
                        continue
                    chosen = np.flatnonzero(verdict.process[n, :count])
                    answers.put(item.key, 0, json.dumps({
                        'indexes': [item.strategies[t] for t in chosen],
                        'probabilities': notes[n]['critical']}), None, 0.0)
            rows += len(group)
            report(group[-1].span, f'{rows} rows')
        return {}


def judge_prompt(item: Any, layout: sharegpt.Layout, domain: str) -> JudgePrompt:
    """Return a row as the judge reads it: what the strategist read first, then every strategy and its consequences."""
    texts: Sequence[str] = [message[layout.content] for message in item.messages]
    first = item.strategies[0]
    followed = [texts[i + 1] if i + 1 < len(texts) else 'The end.' for i in item.strategies]
    return JudgePrompt(
        prompt='\n'.join(texts[i] for i in range(0, first, 2)), seat=0, lines=tuple((0, text) for text in followed),
        strategies=tuple(texts[i] for i in item.strategies), reward=item.score / sharegpt.BEST[domain], complete=True)
