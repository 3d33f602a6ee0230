"""Split a conversation in tokens into the messages that it was made of."""

from typing import Any, Sequence

from epo_jax.text.chat import ChatSegments
from epo_jax.text.tokenizer import decode


def split_messages(ids: Sequence[int], turn: Sequence[int], chat: ChatSegments) -> list[list[int]]:
    """Split a session into messages that alternate between user and assistant, without the template around them.

    An assistant message includes the cue that the reply was started with, if there was one. Everything after the last
    reply is dropped.

    Args:
      ids: token ids of the session.
      turn: per position, t for tokens sampled in turn t, -1 for context.
      chat: chat segments of the model.

    Returns:
      The token ids of every message.

    Raises:
      ValueError: the ids do not match the chat template.
    """
    messages, position = [], 0
    for t in range(max(turn, default=-1) + 1):
        begin = list(turn).index(t)
        end = begin + sum(number == t for number in turn)
        context = list(ids[position:begin])
        if t and context[:1] == [chat.end] and ids[position - 1] != chat.end:
            context = context[1:]  # the previous reply hit its length limit; its end token was added as context
        opening, close = list(chat.between if t else chat.open), list(chat.close)
        places = [i for i in range(len(opening), len(context) - len(close) + 1) if context[i:i + len(close)] == close]
        if context[:len(opening)] != opening or not places:
            raise ValueError(f"turn {t} does not match the run's chat template")
        place = places[-1]
        reply = context[place + len(close):] + list(ids[begin:end])
        messages += [context[len(opening):place], reply[:-1] if reply[-1] == chat.end else reply]
        position = end
    return messages


def decode_messages(messages: Sequence[Sequence[int]], tokenizer: Any, chat: ChatSegments) -> list[str]:
    """Return the texts of messages that alternate between user and assistant."""
    leads = (chat.user_lead, chat.reply_lead)
    return [decode(tokenizer, message, leads[i % 2]) for i, message in enumerate(messages)]


def conversation(ids: Sequence[int], turn: Sequence[int], tokenizer: Any, chat: ChatSegments) -> list[str]:
    """Return the messages of a session as text, see `split_messages`."""
    return decode_messages(split_messages(ids, turn, chat), tokenizer, chat)
