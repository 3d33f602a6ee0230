"""What is measured: groups of contenders at the same work, and the rows of the table that come out of each."""

import dataclasses
from typing import Any, Mapping, Optional

from benchmarks import limits
from benchmarks.limits import Work

OURS = 'epo_jax'


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of all work.

    Attributes:
      samples: clean samples of every contender.
      prompt, new: tokens of a prompt, and decoded after it.
      batches: rows decoded at once, a row of the table each.
      prefill_batch: prompts read at once.
      chunk: tokens of a row that our sampler reads at once; read: the same in dialogues.
      train_batch, train_lengths: rows of a gradient step, and their tokens.
      micro_batch: rows run through our model at once; remat: what its backward pass keeps.
      peer_micro_batch: the same of the peer; 0: all.
      episodes, turns, opening, message: dialogues at once, messages of both seats, tokens of an opening and of a
        message.
      clients: of a server at once.
      rate_size, rate_megabytes, rate_seconds: matrix and array by which the machine's rates are measured, how long.
    """

    samples: int = 5
    prompt: int = 256
    new: int = 64
    batches: tuple[int, ...] = (1, 8, 32)
    prefill_batch: int = 8
    chunk: int = 256
    read: int = 32
    train_batch: int = 4
    train_lengths: tuple[int, ...] = (512, 1024)
    micro_batch: int = 2
    remat: str = 'dots'
    peer_micro_batch: int = 0
    episodes: int = 16
    turns: int = 12
    opening: int = 300
    message: int = 48
    clients: int = 8
    rate_size: int = 2048
    rate_megabytes: int = 512
    rate_seconds: float = 0.5


QUICK = Settings(
    samples=2, new=16, train_batch=2, train_lengths=(128, 256), episodes=2, turns=4, message=16, rate_seconds=0.2)
# More rows, or a GPU waits for its next program; the peer's whole logits bound its micro-batches.
GPU = Settings(
    batches=(1, 8, 32, 128), prefill_batch=32, train_batch=8, micro_batch=8, peer_micro_batch=4, rate_size=8192,
    rate_megabytes=4096)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One contender: the factory ('package.module:function') that makes it in its process, and its options.

    Attributes:
      amount: units of work in one run, where it is not that of the whole group.
      equal: whether it computes in the same precision; others are shown but not compared.
    """

    factory: str
    options: Mapping[str, Any]
    amount: Optional[float] = None
    equal: bool = True


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
      name, unit: unit is 'tokens/s', 'episodes/min', 's' or 'MB'.
      field: the number of a sample that it shows; 'seconds' for the clock.
      limit: 'work' for the least time of the group's work; or the name of a number in our own samples, and the factor
        that makes it the limit; None for no limit.
    """

    name: str
    unit: str
    field: str = 'seconds'
    limit: Optional[tuple[str, float]] = ('work', 1.0)


@dataclasses.dataclass(frozen=True)
class Group:
    """Contenders that take turns.

    Attributes:
      rows: what comes out.
      entries: by name, OURS first.
      work: the least work that the contenders must do; () if it is not known.
      amount: units of work in one run: tokens or episodes.
      steps: sequential steps in one run, for the milliseconds per step; 0 hides them.
      what: description of the work.
    """

    rows: tuple[Row, ...]
    entries: Mapping[str, Entry]
    work: Work = ()
    amount: float = 1.0
    steps: int = 0
    what: str = ''


def groups(settings: Settings, model: str, peer: Mapping[str, Any], dtype: str, device: str,
           suffix: str = '', parts: tuple[str, ...] = ('decode', 'prefill', 'train', 'episodes', 'serve', 'compile'),
           extra: bool = False) -> list[Group]:
    """Return all groups of measurements of one model.

    Args:
      model: see `models.load`.
      peer: the result of `models.export`.
      dtype: of activations, and of the weights that sample.
      device: 'cpu' or 'cuda', where PyTorch computes.
      suffix: appended to the rows' names.
      parts: which of the groups.
      extra: contenders in other precisions too.
    """
    s, config = settings, peer['config']
    itemsize = {'float32': 4, 'bfloat16': 2}[dtype]
    ours = {'model': model, 'dtype': dtype}
    torch = {'folder': peer['folder'], 'shape': peer['shape'], 'dtype': dtype, 'device': device}
    gguf = peer['gguf'] if device == 'cpu' else {}
    made = []

    def peers(name: str, **options) -> dict[str, Entry]:
        entries = {'transformers': Entry(f'benchmarks.peers:transformers_{name}', torch | options)}
        if 'float32' in gguf:
            entries['llama.cpp'] = Entry(
                f'benchmarks.peers:llama_cpp_{name}', {'gguf': gguf['float32']} | options, equal=dtype == 'float32')
        if extra and dtype == 'float32':
            entries['transformers bfloat16'] = Entry(
                f'benchmarks.peers:transformers_{name}', torch | options | {'dtype': 'bfloat16'}, equal=False)
        if extra and 'as shipped' in gguf:
            entries['llama.cpp Q4_1'] = Entry(
                f'benchmarks.peers:llama_cpp_{name}', {'gguf': gguf['as shipped']} | options, equal=False)
        return entries

    if 'decode' in parts:
        for batch in s.batches:
            sizes = {'batch': batch, 'prompt': s.prompt, 'new': s.new}
            entries = {OURS: Entry('benchmarks.models:decode', ours | sizes | {'chunk': s.chunk})}
            entries |= peers('decode', **sizes)
            made.append(Group(
                (Row(f'decode_b{batch}{suffix}', 'tokens/s'),), entries,
                limits.decode(config, batch, s.prompt, s.new, itemsize), batch * s.new, s.new,
                f'{s.new} tokens after {s.prompt}, {batch} row(s); ours sampled at temperature 1, peers greedy'))
    if 'prefill' in parts:
        sizes = {'batch': s.prefill_batch, 'prompt': s.prompt}
        entries = {OURS: Entry('benchmarks.models:prefill', ours | sizes | {'chunk': s.chunk})}
        entries |= peers('prefill', **sizes)
        made.append(Group(
            (Row(f'prefill{suffix}', 'tokens/s'),), entries,
            limits.prefill(config, s.prefill_batch, 0, s.prompt, itemsize), s.prefill_batch * s.prompt,
            what=f'{s.prefill_batch} x {s.prompt} tokens into the cache, no logits'))
    for i, length in enumerate(s.train_lengths if 'train' in parts else ()):
        name = f'train{"_1024" if i else ""}{suffix}'
        sizes = {'batch': s.train_batch, 'length': length}
        entries = {
            OURS: Entry('benchmarks.models:train', ours | sizes | {'micro_batch': s.micro_batch, 'remat': s.remat}),
            'transformers': Entry('benchmarks.peers:transformers_train',
                                  torch | sizes | {'micro_batch': s.peer_micro_batch or s.train_batch})}
        made.append(Group(
            (Row(name, 'tokens/s'), Row(f'{name}_memory', 'MB', 'memory', ('state', 1.8)),
             Row(f'{name}_peak', 'MB', 'peak', None)), entries,
            limits.train(config, s.train_batch, length, itemsize), s.train_batch * length,
            what=f'forward, backward and AdamW on {s.train_batch} x {length} tokens; ours: micro-batches of '
            f'{s.micro_batch}, remat {s.remat}; the peer: micro-batches of {s.peer_micro_batch or s.train_batch}'))
    if 'episodes' in parts:
        sizes = {'turns': s.turns, 'opening_tokens': s.opening, 'new': s.message}
        api = lambda episodes: Entry(
            'benchmarks.episodes:api', torch | sizes | {'model': model, 'episodes': episodes}, episodes)
        made.append(Group(
            (Row(f'episodes{suffix}', 'episodes/min'),),
            {OURS: Entry('benchmarks.episodes:ours', ours | sizes | {'episodes': s.episodes, 'chunk': s.read}),
             'API-style, batched': api(s.episodes), 'API-style, one request at a time': api(1)},
            limits.dialogue(config, s.episodes, s.turns, s.opening, s.message, itemsize), s.episodes,
            what=f'{s.episodes} dialogues of 2 seats, {s.turns} messages of {s.message} tokens, openings of '
            f'{s.opening} tokens; all sample at temperature 1; one request at a time is measured on one dialogue'))
    for fresh in (False, True) if 'serve' in parts else ():
        clients = 1 if fresh else s.clients
        sizes = {'clients': clients, 'prompt': s.prompt, 'new': s.new, 'fresh': fresh}
        entries = {OURS: Entry('benchmarks.serving:ours', ours | sizes)}
        if 'float32' in gguf:
            entries['llama-cpp-python'] = Entry(
                'benchmarks.serving:llama_cpp', {'gguf': gguf['float32']} | sizes, equal=dtype == 'float32')
        name = f'serve{"_new" if fresh else f"_b{clients}"}{suffix}'
        made.append(Group(
            (Row(name, 'tokens/s', 'full', ('alone', 1.0)), Row(f'{name}_first', 's', 'first', None)), entries,
            amount=clients * s.new,
            what=f'{clients} client(s) of a server on loopback, each with a prompt of about {s.prompt} tokens '
            + ('that is new' if fresh else 'that it has sent before') + f', and an answer of {s.new} tokens as a '
            f'stream; the limit is decoding {clients} row(s) in the same process, without a server; _first is the mean '
            'time to the first text'))
    if 'compile' in parts:
        made.append(Group(
            (Row(f'compile_cold{suffix}', 's', 'cold_seconds', None),
             Row(f'compile_warm{suffix}', 's', 'warm_seconds', None)),
            {OURS: Entry('benchmarks.compiling:quickstart', {'model': model})},
            what='all XLA compilation of configs/sotopia.py:quickstart, shortened, in a fresh process with an empty '
            'cache (cold) and with the one that it has filled (warm)'))
    return made


def names(groups: list[Group]) -> list[str]:
    """Return the names of all rows."""
    return [row.name for group in groups for row in group.rows]


def only(groups: list[Group], wanted: list[str]) -> list[Group]:
    """Return the groups with a requested row, or all groups; raise ValueError if there is no such row."""
    if unknown := sorted(set(wanted) - set(names(groups))):
        raise ValueError(f'no row {", ".join(map(repr, unknown))}; there are {", ".join(names(groups))}')
    return [g for g in groups if not wanted or {row.name for row in g.rows} & set(wanted)]
