"""A local judge of critical turns: `epo_jax.rewards.process` applied to conversations from a file."""

import itertools
import json
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from epo_jax.agents.answers import Answers, Entry
from epo_jax.data import sharegpt
from epo_jax.data.labels import Item, Label
from epo_jax.language import activation_dtype, load_language
from epo_jax.rewards import critical
from epo_jax.rewards.judge import Judge
from epo_jax.rewards.process import assess
from epo_jax.rewards.prompts import JudgePrompt, encode_prompts
from epo_jax.runtime.parallel import make_mesh

TURNS = 8  # turns are padded to a multiple of this, to compile fewer programs


class LocalJudge:
    """A model that decides by the probabilities of Yes and No whether a strategy was critical."""

    def __init__(self, model: str, domain: str, capacity: int, batch: int, answers: Answers):
        """Load the model.

        Args:
          model: A model as in `load_language`.
          domain: One of `sharegpt.DOMAINS`.
          capacity: Length of the longest conversation in tokens.
          batch: Conversations to judge at a time.
          answers: Record of the answers.

        Raises:
          InputError: If there is no such model, or the model, its tokenizer or its chat template cannot be used.
        """
        language = load_language(model, '', activation_dtype('auto'), make_mesh((1, -1, 1))).with_params()
        self._judge = Judge(
            model=language.sampler(), params=language.params, tokenizer=language.tokenizer, chat=language.chat,
            capacity=capacity, batch=batch)
        self._judge.check()
        self._answers, self._name, self._domain, self._batch, self._capacity = answers, model, domain, batch, capacity

    def labels(self, source: sharegpt.Source, items: Iterator[Item],
               stop: Callable[[], None]) -> Iterator[tuple[Item, Label]]:
        """See `epo_jax.data.labels.LabelJudge.labels`."""
        while group := list(itertools.islice(items, self._batch)):
            stop()
            # Groups are the same in every run, so a resumed run computes the same numbers.
            if any(self._answers.get(self._request(item)) is None for item in group):
                self._judge_group(group, source.layout)
            for item in group:
                entry = self._answers.get(self._request(item))
                if entry.response is None:
                    yield item, Label(None, entry.refusal)
                else:
                    yield item, Label(*critical.read_answer(entry.response, item.strategies))

    def describe(self) -> str:
        """See `epo_jax.data.labels.LabelJudge.describe`."""
        return ''

    @property
    def spent(self) -> float:
        """See `epo_jax.data.labels.LabelJudge.spent`."""
        return 0.0

    def _request(self, item: Item) -> dict[str, Any]:
        return {'judge': self._name, 'capacity': self._capacity, 'question': item.question}

    def _judge_group(self, group: Sequence[Item], layout: sharegpt.Layout) -> None:
        """Save the answers for some rows."""
        prompts = [judge_prompt(item, layout, self._domain) for item in group]
        turns = -(-max(len(item.strategies) for item in group) // TURNS) * TURNS
        conversations = encode_prompts(self._judge, prompts, turns, 'critical', read=False)
        verdict = assess(self._judge, conversations, 'critical', rate=False)
        notes = verdict.notes()
        for n, item in enumerate(group):
            count = len(item.strategies)
            if verdict.valid[n, :count].all():
                chosen = np.flatnonzero(verdict.process[n, :count])
                entry = Entry(json.dumps({'indexes': [item.strategies[t] for t in chosen],
                                          'probabilities': notes[n]['critical']}))
            else:
                entry = Entry(None, f"does not fit the judge's capacity of {self._capacity} tokens")
            self._answers.put('label', self._request(item), entry)


def judge_prompt(item: Item, layout: sharegpt.Layout, domain: str) -> JudgePrompt:
    """Return the judge's view of a row: the first user messages, then the strategies and the reply to each."""
    texts: Sequence[str] = [message[layout.content] for message in item.messages]
    first = item.strategies[0]
    replies = [texts[i + 1] if i + 1 < len(texts) else 'The end.' for i in item.strategies]
    return JudgePrompt(
        prompt='\n'.join(texts[i] for i in range(0, first, 2)), seat=0, lines=tuple((0, text) for text in replies),
        strategies=tuple(texts[i] for i in item.strategies), reward=item.score / sharegpt.BEST[domain], complete=True)
