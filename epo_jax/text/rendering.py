"""Conversations of any roles as ids, for prompts that come from outside: each message is rendered where it stands.

Training needs conversations that only grow, and splits a template into segments (text/chat.py). A prompt of a client
may also have a system message, or two messages of a role in a row. Here, the template renders markers in the places of
the messages, and the text around them and the messages are encoded separately. What looks like a control token in a
message therefore stays ordinary text.
"""

import re
from typing import Mapping, Optional, Sequence

import jinja2
from transformers import PreTrainedTokenizerBase

from epo_jax.runtime.errors import InputError
from epo_jax.text.chat import DATE, FIXED_DATE, ChatSegments
from epo_jax.text.tokenizer import encode, tokenize


class MessagesError(InputError):
    """Messages that a chat template cannot render; the message says why."""


def encode_messages(tokenizer: PreTrainedTokenizerBase, template: Optional[str], chat: ChatSegments,
                    messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the ids of a conversation up to the beginning of the assistant's next message.

    Args:
      tokenizer: the tokenizer.
      template: the chat template in Jinja.
      chat: its segments. Messages that alternate between user and assistant are put together from them, so that their
        ids are those of training.
      messages: each with 'role' and 'content'.

    Raises:
      MessagesError: the template refuses these roles, or leaves a message out.
    """
    roles = [message['role'] for message in messages]
    if len(roles) % 2 and all(role == ('user', 'assistant')[i % 2] for i, role in enumerate(roles)):
        return chat.join(chat.encode(tokenizer, [message['content'] for message in messages]))
    if template is None:
        raise MessagesError('the model has no chat template, so messages must alternate between user and assistant')
    source = FIXED_DATE + template if 'strftime_now' in template else template
    try:
        text = tokenizer.apply_chat_template(
            [{'role': role, 'content': f'\ue000{i}\ue001'} for i, role in enumerate(roles)], chat_template=source,
            tokenize=False, add_generation_prompt=True, fixed_date=DATE)
    except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError, KeyError) as error:
        raise MessagesError(f'the chat template of the model cannot render the roles {", ".join(roles)}: '
                            f'{error}') from error
    parts = re.split('\ue000(\\d+)\ue001', text)
    if parts[1::2] != [str(i) for i in range(len(messages))]:
        raise MessagesError('the chat template of the model does not render the roles in the order '
                            f'{", ".join(roles)}')
    leads = [chat.reply_lead if role == 'assistant' else chat.user_lead for role in (*roles, 'assistant')]
    ids = []
    for i, (part, lead) in enumerate(zip(parts[::2], leads)):
        ids += tokenize(tokenizer, part.removesuffix(lead.space), fresh=i == 0, ordinary=False)
        if i < len(messages):
            ids += encode(tokenizer, messages[i]['content'], lead)
    return ids
