"""Chat templates, cut once into segments to which a conversation appends.

What was fed to a model or sampled from it is never rendered or tokenized again, so the ids of a conversation must not
change when it grows. A template with this property consists of four pieces. A template without it, which for example
drops the thinking from earlier replies, is refused.
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

# Messages for trying out a template, alternately the user's and the assistant's.
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
    """A chat template that is missing, broken, or not append-only; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class ChatSegments:
    """The pieces of a conversation: open u0 close a0 end between u1 close a1 end between u2 ...

    u and a are the user's and the assistant's messages as `epo_jax.text.tokenizer.encode` has them.

    Attributes:
      open: before the first user message: begin of sequence, default system message, the user's header.
      close: after a user message: its end and the assistant's header.
      between: after the token that ends an assistant message, up to the next user message.
      end: the end-of-turn token that the assistant samples.
      stop: every id that ends a generated message: `end` and the end of sequence.
    """

    open: tuple[int, ...]
    close: tuple[int, ...]
    between: tuple[int, ...]
    end: int
    stop: tuple[int, ...]

    def join(self, messages: Sequence[Sequence[int]]) -> list[int]:
        """Return the ids of a conversation that begins with a user message, up to the next message of the assistant.

        Args:
          messages: ids of each message, in turn the user's and the assistant's.
        """
        ids = [*self.open]
        for i, message in enumerate(messages):
            ids += [*(self.between if i and i % 2 == 0 else ()), *message, *((self.end,) if i % 2 else self.close)]
        return ids


def chat_segments(tokenizer: PreTrainedTokenizerFast, template: Optional[str | os.PathLike] = None) -> ChatSegments:
    """Cut a chat template into segments, and check that they reproduce the template.

    Args:
      tokenizer: see `epo_jax.text.tokenizer.load_tokenizer`.
      template: None: the tokenizer's own; or a key of TEMPLATES; or the path of a .jinja file.

    Raises:
      ChatTemplateError: there is no template, it fails, it rewrites earlier messages, replies do not end in one
        control token, or its text falls into other tokens than its pieces do.
    """
    source = _source(tokenizer, template)

    def render(messages, prompt=True):
        conversation = [{'role': _role(i), 'content': message} for i, message in enumerate(messages)]
        try:
            return tokenizer.apply_chat_template(
                conversation, chat_template=source, tokenize=False, add_generation_prompt=prompt)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise _error(f'fails on a conversation of {len(messages)} message(s): {error}') from error

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
        raise _error(f'ends replies with {after_reply!r}, which begins with no control token of the tokenizer')
    if not finished.startswith(opening + SENTINELS[0] + close + SENTINELS[1] + token):
        raise _error(f'does not end a last reply with {token!r}, the token that other replies end with: {finished!r}')
    stop = dict.fromkeys(i for i in (end, tokenizer.eos_token_id) if i is not None)
    segments = ChatSegments(ids(opening), ids(close), tuple(between), end, tuple(stop))

    for count in (1, 3, 5):
        for shift in range(len(ORDINARY_TEXT)):
            messages = [ORDINARY_TEXT[(shift + i) % len(ORDINARY_TEXT)] for i in range(count)]
            whole, joined = list(ids(render(messages))), segments.join([encode(tokenizer, m) for m in messages])
            if whole != joined:
                at = next((i for i, pair in enumerate(zip(whole, joined)) if pair[0] != pair[1]), len(joined))
                show = lambda x: tokenizer.convert_ids_to_tokens(x[max(at - 2, 0):at + 3])
                raise _error(f'cannot be cut at its messages with this tokenizer: in one piece its text has tokens '
                             f'{show(whole)}, message by message {show(joined)}')
    return segments


def _role(i: int) -> str:
    return 'assistant' if i % 2 else 'user'


def _error(what: str) -> ChatTemplateError:
    return ChatTemplateError(f'the chat template {what}. Choose another one: by name '
                             f'({", ".join(TEMPLATES)}) or the path of a .jinja file')


def _source(tokenizer: PreTrainedTokenizerFast, template: Optional[str | os.PathLike]) -> str:
    if template is None:
        own = tokenizer.chat_template
        own = own.get('default') if isinstance(own, dict) else own  # several, by name
        if not own:
            raise ChatTemplateError('the tokenizer has no chat template of its own; set the option `template` to a '
                                    f'name ({", ".join(TEMPLATES)}) or to the path of a .jinja file')
        return own
    if template in TEMPLATES:
        return TEMPLATES[template]
    path = pathlib.Path(template)
    if not path.is_file():
        raise ChatTemplateError(f'{str(template)!r} is neither a chat template known by name '
                                f'({", ".join(TEMPLATES)}) nor a file')
    return path.read_text(encoding='utf-8')


def _around(text: str, message: str) -> tuple[str, str]:
    """Return the text before and after a message in rendered text."""
    if text.count(message) != 1:
        raise _error(f'writes the message {message!r} {text.count(message)} times instead of once: {text!r}')
    before, _, after = text.partition(message)
    return before, after


def _check_append_only(render: Callable[[Sequence[str]], str], opening: str, close: str, after_reply: str):
    """Check that the rendering of a growing conversation only appends."""
    for what, messages in {'growing conversations': SENTINELS, **PROBES}.items():
        for count in (1, 3, 5):
            def append(messages):
                return [opening] + [
                    piece for i, message in enumerate(messages)
                    for piece in (message, after_reply if i % 2 else close)]

            pieces = append(messages[:count])
            got, want = render(messages[:count]), ''.join(pieces)
            # A template may strip every message, as Llama 3's does. That changes no earlier turn, and sampled ids stay
            # in the session as they were sampled.
            if got in (want, ''.join(append([message.strip() for message in messages[:count]]))):
                continue
            at = len(os.path.commonprefix([got, want]))
            ends = [len(''.join(pieces[:k + 1])) for k in range(len(pieces))]
            piece = next((k for k, end in enumerate(ends) if at < end), len(pieces) - 1)
            message = max(piece - 1, 0) // 2
            start = max(at - 20, 0)
            raise _error(f'is not append-only (seen with {what}): in a conversation of {count} message(s) it writes '
                         f'{got[start:at + 40]!r} where appending gives {want[start:at + 40]!r}, at message '
                         f'{message + 1} ({_role(message)})')
