"""The same dialogues by our rollout and by an API-style loop that sends the whole history every turn.

Two seats talk without strategists. Each reads an opening of its own, then whatever the other says; every message is
sampled at temperature 1 from the whole vocabulary and has a fixed number of tokens. The seats exchange text.
"""

import math
from typing import Any, Mapping, Optional, Sequence

from benchmarks.measure import Contender

OPENING = (
    'You share a flat with an old friend and have to agree tonight on who gets the larger room, who pays which part '
    'of the rent, and whether the cat may stay. You would like the room that looks over the garden, you can pay a '
    'little more than half, and you are fond of the cat but allergic to it. Your friend has lived here for longer, '
    'works at night and has a piano that fits through one of the doors only. You want to part as friends. ')


def opening(tokenizer, seat: int, tokens: int) -> str:
    """Return a text of `tokens` tokens that differs between the seats."""
    from epo_jax.text.tokenizer import decode, encode

    ids = encode(tokenizer, f'Seat {seat}. ' + OPENING * math.ceil(tokens / 60))
    text = decode(tokenizer, ids[:tokens])
    got = len(encode(tokenizer, text))
    if abs(got - tokens) > 2:  # the last word may fall into other tokens once it is cut
        raise ValueError(f'the opening has {got} tokens instead of {tokens}')
    return text


def capacity(turns: int, opening: int, new: int) -> int:
    """Return a multiple of 128 that fits a conversation, its template and a third more tokens than are sampled."""
    return math.ceil((opening + 32 + turns * (new * 4 // 3 + 10)) / 128) * 128


def relay(turns: int, openings: Sequence[str]) -> Any:
    """Return a TextEnvironment in which each seat reads an opening and then what the other seat said."""
    from epo_jax.envs.base import Observation, TextEnvironment, TextStep

    class Relay(TextEnvironment):
        max_turns, num_seats = turns, 2

        def reset(self, scenario, advised):
            return (), tuple(Observation('', text) for text in openings)

        def step(self, state, seat, message):
            state = (*state, (seat, message))
            observations = tuple(Observation('', '' if s == seat else message) for s in (0, 1))
            return state, TextStep(observations, len(state) >= turns)

    return Relay()


def ours(model: str, dtype: str, episodes: int, turns: int, opening_tokens: int, new: int, chunk: int) -> Contender:
    """Play `episodes` dialogues at once with `rollout_on_host`."""
    import jax.numpy as jnp
    import numpy as np

    from benchmarks import models
    from epo_jax.agents.base import Player, Seat
    from epo_jax.agents.local import LocalAgent
    from epo_jax.envs.host import HostEnvironment
    from epo_jax.models.families import decoder
    from epo_jax.models.sampling import SamplingConfig
    from epo_jax.rollout import Table, encode, episode_keys, rollout_on_host
    from epo_jax.text.chat import chat_segments

    config, params = models.load(model, dtype, stacked=False)
    tokenizer = load_tokenizer(model)
    chat = chat_segments(tokenizer)
    settings = SamplingConfig(max_tokens=new, min_tokens=new, stop=chat.stop, temperature=1.0)
    agent = LocalAgent(
        decoder(config, jnp.dtype(dtype)), chat, settings, capacity(turns, opening_tokens, new), chunk=chunk)
    seats = (Seat(Player(agent, params, tokenizer)),) * 2
    env = relay(turns, [opening(tokenizer, seat, opening_tokens) for seat in (0, 1)])
    table = Table(HostEnvironment(env, seats, width=opening_tokens + 4 * new), seats)
    keys = episode_keys(0, 0, np.arange(episodes))
    queue = encode(table, [None] * episodes)

    def run():
        played, reasons = rollout_on_host(table, queue, keys, episodes)
        if np.asarray(played.cause).any():
            raise ValueError(f'dialogues were cut off: {played.cause} {reasons}')
        if not (np.asarray(played.messages.length) == new).all():
            raise ValueError(f'messages of {played.messages.length} tokens instead of {new}')

    return Contender(run)


def load_tokenizer(model: str):
    """Return the tokenizer of a model, or a byte tokenizer."""
    from benchmarks import models
    from epo_jax import testing
    from epo_jax.language import find_model
    from epo_jax.text import tokenizer as text

    return testing.byte_tokenizer() if model in models.SHAPES else text.load_tokenizer(find_model(model))


def histories(spoken: Sequence[str], openings: Sequence[str], seat: int) -> list[str]:
    """Return the messages of a conversation in the view of one seat: user, assistant, ..., user."""
    messages = [openings[seat]]
    for t, text in enumerate(spoken):
        if t % 2 == seat:
            messages += [text, '']
        else:
            messages[-1] += text
    return messages


def api(model: str, folder: Optional[str], shape: Mapping[str, Any], dtype: str, device: str, episodes: int,
        turns: int, opening_tokens: int, new: int) -> Contender:
    """Use `transformers.generate` like an API: every request is a whole history, which is tokenized and read again.

    Args:
      episodes: number of dialogues that are sent as one padded batch; 1 sends one request at a time.
    """
    from benchmarks import peers
    from epo_jax.text.chat import chat_segments
    from epo_jax.text.tokenizer import decode, encode

    torch, decoder = peers.load(folder, shape, dtype, device)
    tokenizer = load_tokenizer(model)
    chat = chat_segments(tokenizer)
    openings = [opening(tokenizer, seat, opening_tokens) for seat in (0, 1)]

    def reply(requests: Sequence[Sequence[str]]) -> list[str]:
        rows = [chat.join([encode(tokenizer, message) for message in messages]) for messages in requests]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
        out = decoder.generate(
            ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, eos_token_id=list(chat.stop),
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
        if tuple(out.shape) != (len(rows), longest + new):
            raise ValueError(f'messages of {out.shape[1] - longest} tokens instead of {new}')
        return [decode(tokenizer, row) for row in out[:, longest:].tolist()]

    def run():
        torch.manual_seed(0)
        spoken = [[] for _ in range(episodes)]
        for t in range(turns):
            requests = [histories(texts, openings, t % 2) for texts in spoken]
            for texts, text in zip(spoken, reply(requests)):
                texts.append(text)

    return Contender(run)
