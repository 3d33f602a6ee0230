"""The engine: one thread that drives the compiled programs over slots, which are refilled as requests come and go.

Between two calls of a program, the thread gives free slots to waiting requests, reads one part of one prompt, and
decodes a few tokens in all slots that sample (continuous batching). A slot keeps its conversation when its request is
finished. The next request that begins with the same ids continues it, or a copy of it, and does not read them again.
"""

import collections
import dataclasses
import threading
import time
from typing import Any, Callable, Iterable, Sequence

import jax
import numpy as np

from epo_jax.models.decoder import Decoder
from epo_jax.serve import slots as programs
from epo_jax.serve.prefixes import Place, Slot, find_place
from epo_jax.serve.tickets import Busy, Piece, RequestError, Sampling, Ticket
from epo_jax.text.tokens import pack

KEEP = 300.0  # seconds for which an idle conversation may keep the cache large


@dataclasses.dataclass(frozen=True)
class Options:
    """Sizes of the engine.

    Attributes:
      slots: number of requests that are served at once.
      capacity: largest number of tokens of a conversation, its answer included. The cache grows to it as needed.
      waiting: largest number of requests that wait for a slot.
      gather: seconds without a new request after which an idle engine begins.
      block: tokens that are decoded between two looks at new requests.
      read: tokens of a prompt that are read between two blocks.
      chunk: tokens in one forward pass of reading.
      step: tokens of the smallest cache, and the step to the next larger ones.
      no_repeat: see Sampling.
    """

    slots: int = 8
    capacity: int = 4096
    waiting: int = 256
    gather: float = 0.01
    block: int = 4
    read: int = 256
    chunk: int = 64
    step: int = 128
    no_repeat: int = 0


class Engine:
    """Serves requests until it is closed; `submit` may be called from any thread.

    Attributes:
      options: its sizes.
      counts: what was done so far, by name: requests, finished, cancelled, refused, failed, tokens_read,
        tokens_reused, tokens_forgotten (in slots that other requests got), tokens_sampled, steps, steps_slots (tokens
        that these steps could sample with all slots in use).
    """

    def __init__(self, model: Decoder, params: Any, options: Options = Options()):
        """Start the thread.

        Args:
          model: the decoder, in the layout that samples.
          params: its parameters.
          options: the sizes.
        """
        self.options, self.counts = options, collections.Counter()
        self._model, self._params = model, params
        self._size = min(options.step, options.capacity)
        self._slots = [Slot(number) for number in range(options.slots)]
        self._device = programs.open_slots(model, options.slots, self._size)
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._changed, self._closed = threading.Condition(), False
        self.failure = ''
        self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
        self._thread.start()

    def submit(self, ids: Sequence[int], sampling: Sampling, deliver: Callable[[Piece], None]) -> Ticket:
        """Queue a request.

        Raises:
          RequestError: the prompt is empty, has ids outside the vocabulary, or leaves no room for an answer.
          Busy: too many requests wait, or the engine is closed.
        """
        room, vocab = self.options.capacity - len(ids), self._model.config.vocab_size
        if not ids or min(ids) < 0 or max(ids) >= vocab:
            raise RequestError('the prompt is empty' if not ids else 'the prompt has ids outside the vocabulary')
        if room < sampling.room:
            raise RequestError(f'the prompt has {len(ids)} tokens, but prompt and answer together may have at most '
                               f'{self.options.capacity}; shorten the conversation')
        sampling = dataclasses.replace(sampling, max_tokens=min(sampling.max_tokens, room))
        ticket = Ticket(list(ids), sampling, deliver)
        with self._changed:
            if self._closed or len(self._waiting) >= self.options.waiting:
                self.counts['refused'] += 1
                raise Busy(self.failure or f'{len(self._waiting)} requests wait already')
            self._waiting.append(ticket)
            self.counts['requests'] += 1
            self._changed.notify()
        return ticket

    def load(self) -> dict[str, int]:
        """Return the numbers of slots, of slots in use and of waiting requests, and the tokens that fit in a slot."""
        return {'slots': len(self._slots), 'busy': sum(slot.ticket is not None for slot in self._slots),
                'waiting': len(self._waiting), 'cache_tokens': self._size}

    def close(self) -> None:
        """Stop the thread; requests that are not finished get an error."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    # The following run in the engine's thread.

    def _run(self) -> None:
        try:
            while self._admit():
                self._read()
                self._decode()
            self._fail('the server is stopping')
        except Exception as error:  # of the device, such as one out of memory; nothing can be served any longer
            self.failure = f'the engine failed: {" ".join(str(error).split())[:300]}'
            with self._changed:
                self._closed = True
            self._fail(self.failure)

    def _fail(self, reason: str) -> None:
        for ticket in [slot.ticket for slot in self._slots if slot.ticket] + list(self._waiting):
            ticket.deliver(Piece(finish='error', error=reason))
            self.counts['failed'] += 1
        self._waiting.clear()

    def _admit(self) -> bool:
        """Give free slots to waiting requests; wait while there is nothing to do. Return False when closed."""
        for slot in self._slots:
            if slot.ticket and slot.ticket.cancelled:
                self.counts['cancelled'] += 1
                self._release(slot)
        with self._changed:
            idle = lambda: not any(slot.ticket for slot in self._slots)
            while not self._closed and not self._waiting and idle():
                self._changed.wait()
            # Requests often come together, and a step takes about as long for one slot as for all.
            seen = 0
            while idle() and not self._closed and seen < len(self._waiting) < len(self._slots):
                seen = len(self._waiting)
                self._changed.wait(self.options.gather)
            if self._closed:
                return False
            waiting = list(self._waiting)
        for ticket in waiting:
            if ticket.cancelled:
                self.counts['cancelled'] += 1
            elif place := find_place(self._slots, ticket.ids):
                if idle():
                    self._shrink(len(ticket.ids))
                    place = find_place(self._slots, ticket.ids)
                self._place(ticket, place)
            else:
                continue
            with self._changed:
                self._waiting.remove(ticket)
        return True

    def _place(self, ticket: Ticket, place: Place) -> None:
        """Give a slot to a request."""
        slot, source, shared, lost = place
        if slot is not source:
            self._device = programs.copy_row(self._model, self._device, source.number, slot.number)
        self._device = programs.place(self._device, slot.number, shared, self._settings(ticket.sampling))
        slot.ids, slot.ticket = ticket.ids[:shared], ticket
        ticket.reused = shared
        self.counts['tokens_reused'] += shared
        self.counts['tokens_forgotten'] += lost
        if ticket.sampling.guide:
            self._restrict(slot)

    def _settings(self, s: Sampling) -> programs.Settings:
        return programs.Settings(
            np.array(s.key, np.uint32), np.float32(s.temperature), np.float32(s.top_p), np.int32(s.top_k),
            np.int32(s.min_tokens), np.int32(s.max_tokens), np.bool_(s.no_repeat), self._mask(s.ends),
            self._mask(s.banned))

    def _mask(self, ids: Iterable[int]) -> np.ndarray:
        mask = np.zeros(self._model.config.vocab_size, bool)
        mask[list(ids)] = True
        return mask

    def _restrict(self, slot: Slot) -> None:
        """Allow only the ids that a request allows after what was said."""
        sampling = slot.ticket.sampling
        banned = ~self._mask(sampling.guide(slot.ticket.said)) | self._mask(sampling.banned)
        self._device = programs.ban(self._device, slot.number, banned)

    def _read(self) -> None:
        """Read a part of the prompt that has waited for longest."""
        reading = [slot for slot in self._slots if slot.reading]
        if not reading:
            return
        slot = min(reading, key=lambda slot: slot.used)
        start = len(slot.ids)
        part = slot.ticket.ids[start:start + self.options.read]
        self._grow(start + len(part) + 1)
        self._device = programs.read(self._model, self._params, self._device, slot.number,
                                     pack([part], self.options.read), min(self.options.chunk, self.options.read))
        slot.ids += part
        slot.ticket.read += len(part)
        slot.used = time.monotonic()
        self.counts['tokens_read'] += len(part)

    def _decode(self) -> None:
        """Sample in all slots whose prompt is read, and deliver the tokens."""
        live = [slot for slot in self._slots if slot.ticket and not slot.reading]
        if not live:
            return
        # A guide is asked after every token, and a first token is delivered at once.
        steps = 1 if any(slot.ticket.sampling.guide or not slot.ticket.said for slot in live) else self.options.block
        self._grow(min(max(len(slot.ids) for slot in live) + steps, self.options.capacity))
        top = programs.TOP if any(slot.ticket.sampling.top for slot in live) else 0
        no_repeat = self.options.no_repeat if any(slot.ticket.sampling.no_repeat for slot in live) else 0
        sizes = steps, self.options.block, min(top, self._model.config.vocab_size), no_repeat
        numbers = [slot.number for slot in live]
        if len(live) == 1 < len(self._slots):  # a step of one row takes much less time than one of all
            columns = [0]
            self._device, sampled = programs.decode_row(self._model, self._params, self._device, *numbers, *sizes)
        else:
            columns = numbers
            self._device, sampled = programs.decode(
                self._model, self._params, self._device, np.isin(range(len(self._slots)), numbers), *sizes)
        sampled = jax.device_get(sampled)
        count = int((sampled.ids >= 0).any(axis=1).sum())
        self.counts['steps'] += count
        self.counts['steps_slots'] += count * len(self._slots)
        for slot, b in zip(live, columns):
            self._deliver(slot, sampled, b, count)

    def _deliver(self, slot: Slot, sampled: programs.Sampled, b: int, count: int) -> None:
        """Hand over the first `count` tokens of column b."""
        ticket = slot.ticket
        ids = sampled.ids[:count, b].tolist()
        slot.ids += ids
        slot.used = time.monotonic()
        ticket.said += ids
        self.counts['tokens_sampled'] += count
        if sampled.broken[b]:
            finish, error = 'error', 'the logits of the model are not finite; check its weights and dtype'
        else:
            finish, error = None, ''
            if ids[-1] in ticket.sampling.ends:
                finish = 'stop'
            elif len(ticket.said) >= ticket.sampling.max_tokens:
                finish = 'length'
        if not ticket.cancelled:
            tops = tuple(
                tuple(zip(sampled.top_ids[i, b].tolist(), sampled.top_logprob[i, b].tolist()))
                for i in range(count)) if ticket.sampling.top else ()
            ticket.deliver(Piece(tuple(ids), tuple(sampled.logprob[:count, b].tolist()), tops, finish, error))
        if finish:
            self.counts['failed' if error else 'finished'] += 1
            if error:
                slot.ids = []  # its keys and values are not finite either
            self._release(slot)
        elif ticket.sampling.guide:
            self._restrict(slot)

    def _release(self, slot: Slot) -> None:
        slot.ticket, slot.used = None, time.monotonic()

    def _grow(self, tokens: int) -> None:
        if tokens > self._size:
            self._resize(size_for(tokens, self.options.capacity, self.options.step))

    def _shrink(self, tokens: int) -> None:
        """Make the cache smaller, as no slot is in use, and forget long conversations that are old."""
        recent = [len(slot.ids) for slot in self._slots if time.monotonic() - slot.used < KEEP]
        size = size_for(max([tokens, *recent]) + 1, self.options.capacity, self.options.step)
        if 2 * size <= self._size:
            for slot in self._slots:
                if len(slot.ids) >= size:
                    self.counts['tokens_forgotten'] += len(slot.ids)
                    slot.ids = []
            self._resize(size)

    def _resize(self, size: int) -> None:
        self._device, self._size = programs.resize(self._model, self._device, size), size


def size_for(tokens: int, capacity: int, step: int) -> int:
    """Return the size of a cache for conversations of this many tokens, at most `capacity`.

    There are few sizes, since programs are compiled for each: multiples of `step`, and from four of them on, each is
    about half as large again.
    """
    size = step
    while size < tokens:
        size += step if size < 4 * step else -(-size // (2 * step)) * step
    return min(size, capacity)
