"""Chat templates, split once into segments so that conversations only append tokens.

Tokens that were fed to a model or sampled from it are never rendered or tokenized again, so the ids of a conversation
must not change when it grows. A template with this property consists of four segments. Other templates are rejected,
for example those that remove the thinking from earlier replies.
"""

import dataclasses
import datetime
import functools
import os
import pathlib
from typing import Callable, Optional, Sequence

from transformers import PreTrainedTokenizerBase

from epo_jax.runtime.errors import InputError
from epo_jax.text.tokenizer import CONTINUATION, Lead, encode, special_ids, tokenize

TEMPLATES = {
    'chatml': (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"),
    'llama3': (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"),
    'mistral': (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
        "{% else %}{{ '[INST]' + message['content'] + '[/INST]' }}{% endif %}"
        "{% endfor %}"),
    'gemma': (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' "
        "+ message['content'] + '<end_of_turn>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"),
    # Qwen3 without thinking. Its own template removes the thinking from earlier replies, and puts an empty one only
    # before the last reply; here it is before every reply, so that a conversation only grows.
    'qwen3': (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"),
}

# The date that templates print, Llama 3.2's own default, by the codes of strftime. Conversations must not depend on the
# day on which a run is started or resumed.
DATE = {f'%{code}': datetime.datetime(2024, 7, 26).strftime(f'%{code}') for code in 'aAbBcdHIjmMpSwxXyYf'}
DATE |= {f'%-{code}': DATE[f'%{code}'].lstrip('0') or '0' for code in 'dHIjmMS'}
# A template's function `strftime_now` for this date.
FIXED_DATE = (
    '{% macro strftime_now(format) %}{% set ns = namespace(text=format) %}{% for code, value in fixed_date.items() %}'
    '{% set ns.text = ns.text | replace(code, value) %}{% endfor %}{{ ns.text }}{% endmacro +%}')

# Messages that test a template, alternately of the user and the assistant.
SENTINELS = ('Qfirst', 'Qsecond', 'Qthird', 'Qfourth', 'Qfifth')
PROBES = {
    'spaces around messages': tuple(f' \n{message}\n ' for message in SENTINELS),
    'thinking in replies': tuple(
        f'<think>\nhm {i}\n</think>\n\n{message}' if i % 2 else message for i, message in enumerate(SENTINELS)),
}
ORDINARY_TEXT = (
    'Hello! How are you today?',
    "I'm fine, thanks. The 12 apples cost $34.50, don't they?",
    'First line\nsecond line\n\n- a list\n- of two',
    'Ça va bien; 日本語 is hard — naïve café 🙂.',
    'x',
)


class ChatTemplateError(InputError):
    """A chat template is missing, broken, or not append-only."""


@dataclasses.dataclass(frozen=True)
class ChatSegments:
    """The segments of a conversation: open u0 close a0 end between u1 close a1 end between u2 ...

    Here u are the messages of the user and a those of the assistant, encoded by `epo_jax.text.tokenizer.encode` with
    `user_lead` or `reply_lead`.

    Attributes:
      open: ids before the first user message: begin-of-sequence token, default system message, header of the user.
      close: ids after a user message: end of the turn and header of the assistant.
      between: ids between the end-of-turn token of an assistant message and the next user message.
      end: the end-of-turn token that the assistant samples.
      stop: ids that end a sampled message: `end` and the end-of-sequence tokens.
      user_lead: what precedes a user message.
      reply_lead: what precedes an assistant message.
      before_end: ids that the template puts between an assistant message and its end-of-turn token.
    """

    open: tuple[int, ...]
    close: tuple[int, ...]
    between: tuple[int, ...]
    end: int
    stop: tuple[int, ...]
    user_lead: Lead = CONTINUATION
    reply_lead: Lead = CONTINUATION
    before_end: tuple[int, ...] = ()

    def encode(self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[str]) -> list[list[int]]:
        """Return the ids of each message, alternately of the user and the assistant."""
        leads = (self.user_lead, self.reply_lead)
        return [encode(tokenizer, message, leads[i % 2]) for i, message in enumerate(messages)]

    def join(self, messages: Sequence[Sequence[int]]) -> list[int]:
        """Return the ids of a conversation. After a user message, they end with the header of the assistant.

        Args:
          messages: the ids of each message, alternately of the user and the assistant; see `encode`.
        """
        ids = [*self.open]
        for i, message in enumerate(messages):
            ids += [*(self.between if i and i % 2 == 0 else ()), *message,
                    *((*self.before_end, self.end) if i % 2 else self.close)]
        return ids


def chat_segments(tokenizer: PreTrainedTokenizerBase, template: Optional[str | os.PathLike] = None,
                  ends: Sequence[int] = ()) -> ChatSegments:
    """Split a chat template into segments, and check that the segments reproduce the template.

    Args:
      tokenizer: the tokenizer; see `epo_jax.text.tokenizer.load_tokenizer`.
      template: a key of TEMPLATES or the path of a .jinja file; None for the template of the tokenizer.
      ends: further ids that end a message, such as those in generation_config.json.

    Raises:
      ChatTemplateError: there is no template, it fails, it rewrites earlier messages, its replies do not end with a
        control token, or the tokens of its text are not those of its segments.
    """
    source = _source(tokenizer, template)
    if 'strftime_now' in source:
        source = FIXED_DATE + source

    def render(messages, prompt=True):
        conversation = [{'role': _role(i), 'content': message} for i, message in enumerate(messages)]
        try:
            return tokenizer.apply_chat_template(
                conversation, chat_template=source, tokenize=False, add_generation_prompt=prompt,
                fixed_date=DATE)
        except Exception as error:  # a template is a program, which can raise anything
            raise _error(f'fails for a conversation of {len(messages)} message(s): {error}') from error

    text = _split(render)
    _check_append_only(render, text)
    ids = functools.partial(tokenize, tokenizer, ordinary=False)
    finish = ids(text.finish, fresh=False)
    special = special_ids(tokenizer)
    at = next((i for i, token in enumerate(finish) if token in special), None)
    token = None if at is None else tokenizer.convert_ids_to_tokens(finish[at])
    space = text.finish[:-len(text.finish.lstrip(' '))] if text.reply_space else ''
    if token is None or not text.finish.startswith(space + token):
        raise _error(f'ends replies with {text.finish!r}, which does not begin with a control token of the tokenizer')
    finished = render(SENTINELS[:2], prompt=False)
    if not finished.startswith(text.join(SENTINELS[:2]).removesuffix(text.finish) + space + token):
        raise _error(f'ends earlier replies with {token!r}, but not the last reply: {finished!r}')
    stop = dict.fromkeys(i for i in (finish[at], tokenizer.eos_token_id, *ends) if i is not None)
    opening, close = ids(text.open, fresh=True), ids(text.close, fresh=False)
    segments = ChatSegments(
        tuple(opening), tuple(close), tuple(finish[at + 1:]), finish[at], tuple(stop),
        user_lead=_lead(tokenizer, text.open, True, text.user_space),
        reply_lead=_lead(tokenizer, text.close, False, text.reply_space), before_end=tuple(finish[:at]))
    _check_tokens(tokenizer, segments, lambda messages: render(messages).removesuffix(text.prompt_space))
    return segments


@dataclasses.dataclass(frozen=True)
class _Text:
    """The segments of a template as text: open U u0 close R a0 finish U u1 close R a1 finish ...

    U and R are spaces, which belong to the first token of the message after them. `finish` contains the end-of-turn
    token and everything up to the next user message. `prompt_space` ends the text before a reply that is to be written.
    """

    open: str
    close: str
    finish: str
    user_space: str
    reply_space: str
    prompt_space: str

    def join(self, messages: Sequence[str]) -> str:
        """Return the text of a conversation; after a user message, without the space of the reply."""
        return self.open + ''.join(
            self.reply_space + message + self.finish if i % 2 else self.user_space + message + self.close
            for i, message in enumerate(messages))

    def variants(self, messages: Sequence[str]) -> list[str]:
        """Return what a template may make of a conversation.

        It may strip every message, as Llama 3's does, or, if it puts a space before replies, every reply, as Mistral's
        does. This does not change earlier messages, and the session keeps the ids that were sampled.
        """
        strip = lambda roles: [m.strip() if _role(i) in roles else m for i, m in enumerate(messages)]
        roles = ((), ('user', 'assistant'), *((('assistant',),) if self.reply_space else ()))
        return [self.join(strip(stripped)) for stripped in roles]


def _split(render: Callable[[Sequence[str]], str]) -> _Text:
    """Return the segments of the conversation of the sentinels."""
    opening, close = _around(render(SENTINELS[:1]), SENTINELS[0])
    first, rest = _around(render(SENTINELS[:3]), SENTINELS[1])
    _, before_reply = _around(first, SENTINELS[0])
    finish, _ = _around(rest, SENTINELS[2])
    space = lambda text: text[len(text.rstrip(' ')):]
    text = _Text(opening.rstrip(' '), close.rstrip(' '), finish.rstrip(' '), space(opening), space(before_reply),
                 space(close))
    if space(finish) != text.user_space:
        raise _error(f'puts {text.user_space!r} before the first message, but {space(finish)!r} before later ones')
    return text


def _lead(tokenizer: PreTrainedTokenizerBase, before: str, fresh: bool, space: str) -> Lead:
    """Return what precedes a message after the text `before`: `fresh` says whether that begins the conversation.

    A tokenizer may put a space in front of the text after a control token, as in front of a whole text.
    """
    ids = functools.partial(tokenize, tokenizer, ordinary=False)
    known = ids(before, fresh=fresh)
    for lead in (Lead(space, False), Lead(space, True)):
        if all(ids(f'{before}{space}{text}', fresh=fresh) == known + encode(tokenizer, text, lead)
               for text in ORDINARY_TEXT):
            return lead
    return Lead(space, False)


def _check_tokens(tokenizer: PreTrainedTokenizerBase, segments: ChatSegments, render: Callable[[Sequence[str]], str]):
    """Raise ChatTemplateError if joined segments and messages have other tokens than the complete text."""
    for count in (1, 3, 5):
        for shift in range(len(ORDINARY_TEXT)):
            messages = [ORDINARY_TEXT[(shift + i) % len(ORDINARY_TEXT)] for i in range(count)]
            rendered = tokenize(tokenizer, render(messages), fresh=True, ordinary=False)
            joined = segments.join(segments.encode(tokenizer, messages))
            if rendered != joined:
                at = next((i for i, pair in enumerate(zip(rendered, joined)) if pair[0] != pair[1]), len(joined))
                show = lambda x: tokenizer.convert_ids_to_tokens(x[max(at - 2, 0):at + 3])
                raise _error('cannot be split at its messages with this tokenizer: the complete text has the tokens '
                             f'{show(rendered)}, but the separate messages have the tokens {show(joined)}')


def _role(i: int) -> str:
    return 'assistant' if i % 2 else 'user'


def _error(problem: str) -> ChatTemplateError:
    return ChatTemplateError(f'the chat template {problem:.800}. Set chat_template to the name of another template '
                             f'({", ".join(TEMPLATES)}) or to the path of a .jinja file')


def _source(tokenizer: PreTrainedTokenizerBase, template: Optional[str | os.PathLike]) -> str:
    if template is None:
        default = tokenizer.chat_template
        default = default.get('default') if isinstance(default, dict) else default  # a dict has several templates
        if not default:
            raise ChatTemplateError('the tokenizer has no chat template. Set chat_template to the name of a template '
                                    f'({", ".join(TEMPLATES)}) or to the path of a .jinja file')
        return default
    if template in TEMPLATES:
        return TEMPLATES[template]
    path = pathlib.Path(template)
    if not path.is_file():
        raise ChatTemplateError(f'{str(template)!r} is neither the name of a chat template '
                                f'({", ".join(TEMPLATES)}) nor a file')
    return path.read_text(encoding='utf-8')


def _around(text: str, message: str) -> tuple[str, str]:
    """Return the rendered text before and after a message."""
    if text.count(message) != 1:
        raise _error(f'renders the message {message!r} {text.count(message)} times instead of once: {text!r}')
    before, _, after = text.partition(message)
    return before, after


def _check_append_only(render: Callable[[Sequence[str]], str], text: _Text):
    """Raise ChatTemplateError if a message changes the rendering of earlier messages."""
    for case, messages in {'growing conversations': SENTINELS, **PROBES}.items():
        for count in (1, 3, 5):
            part = messages[:count]
            rendered, (expected, *variants) = render(part).removesuffix(text.prompt_space), text.variants(part)
            if rendered in (expected, *variants):
                continue
            at = len(os.path.commonprefix([rendered, expected]))
            message = next((k for k in range(count) if at < len(text.join(part[:k + 1]))), count - 1)
            start = max(at - 20, 0)
            raise _error(f'is not append-only (test case: {case}): for a conversation of {count} message(s) it renders '
                         f'{rendered[start:at + 40]!r} instead of {expected[start:at + 40]!r} at message {message + 1} '
                         f'({_role(message)})')
