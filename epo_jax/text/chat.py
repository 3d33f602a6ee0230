"""Chat templates, split once into segments so that conversations only append tokens.

Tokens that were fed to a model or sampled from it are never rendered or tokenized again, so the ids of a conversation
must not change when it grows. A template with this property consists of four segments. Other templates are rejected,
for example those that remove the thinking from earlier replies.
"""

import dataclasses
import os
import pathlib
from typing import Callable, Optional, Sequence

import jinja2
from transformers import PreTrainedTokenizerFast

from epo_jax.runtime.errors import InputError
from epo_jax.text.tokenizer import encode, special_ids

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
}

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

    Here u are the messages of the user and a those of the assistant, encoded by `epo_jax.text.tokenizer.encode`.

    Attributes:
      open: ids before the first user message: begin-of-sequence token, default system message, header of the user.
      close: ids after a user message: end of the turn and header of the assistant.
      between: ids between the end-of-turn token of an assistant message and the next user message.
      end: the end-of-turn token that the assistant samples.
      stop: ids that end a sampled message: `end` and the end-of-sequence token.
    """

    open: tuple[int, ...]
    close: tuple[int, ...]
    between: tuple[int, ...]
    end: int
    stop: tuple[int, ...]

    def join(self, messages: Sequence[Sequence[int]]) -> list[int]:
        """Return the ids of a conversation. After a user message, they end with the header of the assistant.

        Args:
          messages: the ids of each message, alternately of the user and the assistant.
        """
        ids = [*self.open]
        for i, message in enumerate(messages):
            ids += [*(self.between if i and i % 2 == 0 else ()), *message, *((self.end,) if i % 2 else self.close)]
        return ids


def chat_segments(tokenizer: PreTrainedTokenizerFast, template: Optional[str | os.PathLike] = None) -> ChatSegments:
    """Split a chat template into segments, and check that the segments reproduce the template.

    Args:
      tokenizer: the tokenizer; see `epo_jax.text.tokenizer.load_tokenizer`.
      template: a key of TEMPLATES or the path of a .jinja file; None for the template of the tokenizer.

    Raises:
      ChatTemplateError: there is no template, it fails, it rewrites earlier messages, its replies do not end with a
        control token, or the tokens of its text are not those of its segments.
    """
    source = _source(tokenizer, template)

    def render(messages, prompt=True):
        conversation = [{'role': _role(i), 'content': message} for i, message in enumerate(messages)]
        try:
            return tokenizer.apply_chat_template(
                conversation, chat_template=source, tokenize=False, add_generation_prompt=prompt)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise _error(f'fails for a conversation of {len(messages)} message(s): {error}') from error

    def ids(text):
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=False, verbose=False)
        return tuple(encoded['input_ids'])

    opening, close = _around(render(SENTINELS[:1]), SENTINELS[0])
    _, rest = _around(render(SENTINELS[:3]), SENTINELS[1])
    after_reply, _ = _around(rest, SENTINELS[2])
    _check_append_only(render, opening, close, after_reply)

    end, *between = ids(after_reply) or (None,)
    token = tokenizer.convert_ids_to_tokens(end) if end in special_ids(tokenizer) else None
    finished = render(SENTINELS[:2], prompt=False)
    if token is None or not after_reply.startswith(token):
        raise _error(f'ends replies with {after_reply!r}, which does not begin with a control token of the tokenizer')
    if not finished.startswith(opening + SENTINELS[0] + close + SENTINELS[1] + token):
        raise _error(f'ends earlier replies with {token!r}, but not the last reply: {finished!r}')
    stop = dict.fromkeys(i for i in (end, tokenizer.eos_token_id) if i is not None)
    segments = ChatSegments(ids(opening), ids(close), tuple(between), end, tuple(stop))

    for count in (1, 3, 5):
        for shift in range(len(ORDINARY_TEXT)):
            messages = [ORDINARY_TEXT[(shift + i) % len(ORDINARY_TEXT)] for i in range(count)]
            rendered, joined = list(ids(render(messages))), segments.join([encode(tokenizer, m) for m in messages])
            if rendered != joined:
                at = next((i for i, pair in enumerate(zip(rendered, joined)) if pair[0] != pair[1]), len(joined))
                show = lambda x: tokenizer.convert_ids_to_tokens(x[max(at - 2, 0):at + 3])
                raise _error('cannot be split at its messages with this tokenizer: the complete text has the tokens '
                             f'{show(rendered)}, but the separate messages have the tokens {show(joined)}')
    return segments


def _role(i: int) -> str:
    return 'assistant' if i % 2 else 'user'


def _error(problem: str) -> ChatTemplateError:
    return ChatTemplateError(f'the chat template {problem}. Set chat_template to the name of another template '
                             f'({", ".join(TEMPLATES)}) or to the path of a .jinja file')


def _source(tokenizer: PreTrainedTokenizerFast, template: Optional[str | os.PathLike]) -> str:
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


def _check_append_only(render: Callable[[Sequence[str]], str], opening: str, close: str, after_reply: str):
    """Raise ChatTemplateError if a message changes the rendering of earlier messages."""
    for case, messages in {'growing conversations': SENTINELS, **PROBES}.items():
        for count in (1, 3, 5):
            def append(messages):
                return [opening] + [
                    piece for i, message in enumerate(messages)
                    for piece in (message, after_reply if i % 2 else close)]

            pieces = append(messages[:count])
            rendered, expected = render(messages[:count]), ''.join(pieces)
            # A template may strip every message, as Llama 3's does. This does not change earlier messages, and the
            # session keeps the ids that were sampled.
            if rendered in (expected, ''.join(append([message.strip() for message in messages[:count]]))):
                continue
            at = len(os.path.commonprefix([rendered, expected]))
            ends = [len(''.join(pieces[:k + 1])) for k in range(len(pieces))]
            piece = next((k for k, end in enumerate(ends) if at < end), len(pieces) - 1)
            message = max(piece - 1, 0) // 2
            start = max(at - 20, 0)
            raise _error(f'is not append-only (test case: {case}): for a conversation of {count} message(s) it renders '
                         f'{rendered[start:at + 40]!r} instead of {expected[start:at + 40]!r} at message {message + 1} '
                         f'({_role(message)})')
