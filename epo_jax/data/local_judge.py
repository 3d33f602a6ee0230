"""A local judge of critical turns: `epo_jax.rewards.process` applied to conversations from a file."""

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

TURNS = 8  # turns are padded to a multiple of this, to compile fewer programs


class LocalJudge:
    """A model that decides by the probabilities of Yes and No whether a strategy was critical."""

    def __init__(self, model: str, domain: str, capacity: int, batch: int):
        """Load the model.

        Args:
          model: A model as in `load_language`.
          domain: One of `sharegpt.DOMAINS`.
          capacity: Length of the longest conversation in tokens.
          batch: Conversations to judge at a time.

        Raises:
          InputError: If there is no such model, or the model, its tokenizer or its chat template cannot be used.
        """
        language = load_language(model, '', activation_dtype('auto'), make_mesh((1, -1, 1))).with_params()
        self._judge = Judge(
            model=language.sampler(), params=language.params, tokenizer=language.tokenizer, chat=language.chat,
            capacity=capacity, batch=batch)
        self._judge.check()
        self._domain, self._batch, self._capacity = domain, batch, capacity

    def ask(self, source: sharegpt.Source, items: Iterator[Any], answers: Any,
            report: Callable[[Any, str], None], stop: Callable[[], None] = lambda: None) -> dict[str, str]:
        """Judge every row that has no answer yet.

        Args:
          source: The file and its layout.
          items: Its rows (`epo_jax.label.Item`).
          answers: Database that receives the answers (`epo_jax.label.Answers`).
          report: Function that shows the progress, from a position in the file and a text.
          stop: Function that is called between two groups of rows, and may raise an error to stop.

        Returns:
          An empty dict: every row gets an answer, or a reason why it has none.
        """
        rows = 0
        while group := list(itertools.islice(items, self._batch)):
            stop()
            # Groups are the same in every run, so a resumed run computes the same numbers.
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
    """Return the judge's view of a row: the first user messages, then the strategies and the reply to each."""
    texts: Sequence[str] = [message[layout.content] for message in item.messages]
    first = item.strategies[0]
    replies = [texts[i + 1] if i + 1 < len(texts) else 'The end.' for i in item.strategies]
    return JudgePrompt(
        prompt='\n'.join(texts[i] for i in range(0, first, 2)), seat=0, lines=tuple((0, text) for text in replies),
        strategies=tuple(texts[i] for i in item.strategies), reward=item.score / sharegpt.BEST[domain], complete=True)
