"""Timing on a machine that other processes may use, too.

Every contender runs in its own child process, which sleeps on a pipe between samples, so that no thread pool spins
while another contender is measured. A sample during which anything else used the cores is refused and taken again.
Foreign time is the busy time of all processors (/proc/stat) minus that of the measured process and its children.
"""

import dataclasses
import importlib
import multiprocessing
import os
import statistics
import time
import traceback
from typing import Any, Callable, Mapping, Optional

TICK = 1 / os.sysconf('SC_CLK_TCK')  # seconds, the resolution of /proc/stat
QUIET = 0.05  # share of the cores that may be busy before a sample is begun
SHORTEST = 0.5  # seconds; shorter runs are repeated, since contention is measured in clock ticks


class Unavailable(Exception):
    """A contender that cannot run here (a package is not installed, ...); the message says why."""


class BenchmarkError(RuntimeError):
    """A contender failed, or its process died; the message holds its traceback."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """What a factory returns, inside the child process.

    Attributes:
      run: does all of the work; may return numbers to keep with the sample.
      prepare: is called before every run, untimed.
      warm_up: run once, unmeasured, before the first sample (compilation, first touch of memory).
      rehearse: run once, unmeasured, before every sample. The host of a virtual machine may reclaim memory that was
        freed before a pause, and returns it slowly; continuous work would have kept it.
    """

    run: Callable[[], Optional[Mapping[str, float]]]
    prepare: Callable[[], None] = lambda: None
    warm_up: bool = True
    rehearse: bool = False


@dataclasses.dataclass(frozen=True)
class Sample:
    """One measured run, or the mean of several short ones.

    Attributes:
      seconds: wall-clock seconds of a run.
      foreign: share of all cores' time that was spent on something else, 0 to 1; time stolen by the host counts.
      contended: `foreign` is more than the policy allows.
      values: what the last run returned.
    """

    seconds: float
    foreign: float
    contended: bool
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Policy:
    """When a sample counts.

    Attributes:
      samples: clean samples wanted of every contender.
      allowed: largest foreign share of the cores in a clean sample.
      retries: samples of one contender that are refused in one group of rows before it is given up.
      patience: seconds to wait for a quiet machine before a sample is taken anyway.
      accept: contended samples count too, and are marked.
    """

    samples: int
    allowed: float = 0.03
    retries: int = 10
    patience: float = 30.0
    accept: bool = False


@dataclasses.dataclass(frozen=True)
class Measured:
    """The samples of one contender that count, and how many were refused."""

    samples: tuple[Sample, ...] = ()
    refused: int = 0

    @property
    def contended(self) -> int:
        """Return how many of the samples that count are contended."""
        return sum(sample.contended for sample in self.samples)

    def median(self, value: Callable[[Sample], Optional[float]]) -> Optional[float]:
        """Return the median of a value over the samples; None if no sample has it."""
        values = [v for v in map(value, self.samples) if v is not None]
        return statistics.median(values) if values else None


def busy_seconds(stat: str) -> float:
    """Return the seconds that all processors have been busy since boot, steal included, from /proc/stat."""
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.split('\n', 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) * TICK


def own_seconds() -> float:
    """Return the processor time of this process, with all its threads and the children that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _reading() -> tuple[float, float, float]:
    """Return (clock, busy seconds of the machine, own processor seconds)."""
    with open('/proc/stat', encoding='ascii') as file:
        stat = file.read()
    return time.perf_counter(), busy_seconds(stat), own_seconds()


def foreign_share(before: tuple[float, float, float], after: tuple[float, float, float], cores: int) -> float:
    """Return the share of the `cores` that others used between two readings, minus the possible error of the ticks."""
    wall, busy, own = (b - a for a, b in zip(before, after))
    return max(0.0, busy - own - cores * TICK) / (cores * wall)


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def sample(contender: Contender, allowed: float) -> Sample:
    """Take one sample and check for contention; a sample of short work is the mean of several runs.

    The time excludes `prepare`, but contention during `prepare` counts.
    """
    before, spent, runs, values = _reading(), 0.0, 0, None
    while spent < SHORTEST:
        contender.prepare()
        start = time.perf_counter()
        values = contender.run()
        spent, runs = spent + time.perf_counter() - start, runs + 1
    foreign = foreign_share(before, _reading(), os.cpu_count())
    return Sample(spent / runs, foreign, foreign > allowed, dict(values or {}))


def wait_until_quiet(patience: float) -> bool:
    """Wait until the machine is idle; return False if it is not within `patience` seconds."""
    end = time.perf_counter() + patience
    while True:
        before = _reading()
        time.sleep(0.2)
        if foreign_share(before, _reading(), os.cpu_count()) <= QUIET:
            return True
        if time.perf_counter() > end:
            return False
        time.sleep(min(1.0, patience))


def reset_peak_memory() -> None:
    """Make `peak_memory` ignore everything that was loaded and freed before this call."""
    with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
        file.write('5')


def peak_memory() -> int:
    """Return the largest resident size of this process in bytes since its start or the last reset."""
    with open('/proc/self/status', encoding='ascii') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith('VmHWM'))


def resolve(name: str) -> Callable[..., Any]:
    """Return the function named 'package.module:function'."""
    module, function = name.split(':')
    return getattr(importlib.import_module(module), function)


def _serve(pipe, name: str, options: Mapping[str, Any], once: bool, allowed: float) -> None:
    """Run the child process: create the contender, then take a sample for every message until None."""
    try:
        made = resolve(name)(**options)
        if once:
            pipe.send(made)
            return
        if made.warm_up:
            made.prepare()
            made.run()
        pipe.send('ready')
        while _asked(pipe):
            if made.rehearse:
                made.prepare()
                made.run()
            pipe.send(sample(made, allowed))
    except Unavailable as error:
        pipe.send(error)
    except Exception:  # the parent would wait forever if any error were not reported
        pipe.send(BenchmarkError(f'{name} failed:\n{traceback.format_exc()}'))
    except KeyboardInterrupt:  # the parent receives it, too
        return


def _asked(pipe) -> bool:
    """Wait for the parent; return True if it requests a sample, False if it asks to stop or has ended."""
    try:
        return pipe.recv() is not None
    except EOFError:
        return False


class Child:
    """A contender in a process of its own; a context manager."""

    def __init__(self, factory: str, options: Mapping[str, Any], allowed: float = 1.0, once: bool = False):
        """Start the process and wait until its contender is warm.

        Args:
          factory: 'package.module:function', called with `options` in the child; returns a Contender.
          allowed: largest foreign share of a clean sample.
          once: whether the factory returns the final result instead of a Contender; see `call`.

        Raises:
          Unavailable: the factory said so.
          BenchmarkError: it failed, or its process died.
        """
        self.factory = factory
        context = multiprocessing.get_context('spawn')  # a fork would inherit the threads' locks, not the threads
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, options, once, allowed), daemon=False)
        self._process.start()
        theirs.close()
        try:
            self.first = self._receive()
        except BaseException:
            self.close()
            raise

    def _receive(self) -> Any:
        try:
            got = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise BenchmarkError(f'{self.factory}: its process died with exit code {self._process.exitcode} '
                                 '(a negative code is a signal; -9 usually means too little memory)') from None
        if isinstance(got, (Unavailable, BenchmarkError)):
            raise got
        return got

    def sample(self) -> Sample:
        """Take one sample; raise BenchmarkError if it fails."""
        self._pipe.send('go')
        return self._receive()

    def close(self) -> None:
        """End the process."""
        try:
            self._pipe.send(None)
        except OSError:  # it has ended already
            pass
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> 'Child':
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def call(function: str, **options: Any) -> Any:
    """Call 'package.module:function' in a process of its own, and return the result."""
    with Child(function, options, once=True) as child:
        return child.first


def _take(child: Any, policy: Policy, retries: int) -> tuple[Optional[Sample], int]:
    """Return (a valid sample or None, the number of refused samples before it); at most `retries` are refused."""
    refused = 0
    while True:
        if not policy.accept:
            wait_until_quiet(policy.patience)
        got = child.sample()
        if policy.accept or not got.contended:
            return got, refused
        refused += 1
        if refused > retries:
            return None, refused


def alternate(children: Mapping[str, Any], policy: Policy,
              tell: Callable[[str, Optional[Sample]], None] = lambda name, sample: None) -> dict[str, Measured]:
    """Sample all contenders in turn: one sample of each, then one of each again, ...

    Args:
      children: contenders by name, in their order; anything with a method `sample`.
      policy: how many samples, and which count.
      tell: called after every turn with the contender's name and its sample, or None if it was given up.

    Returns:
      What was measured, by name. A contender whose retries are used up gets no further samples.
    """
    measured = {name: Measured() for name in children}
    given_up = set()
    for _ in range(policy.samples):
        for name, child in children.items():
            if name in given_up:
                continue
            old = measured[name]
            got, refused = _take(child, policy, policy.retries - old.refused)
            measured[name] = Measured(old.samples + ((got,) if got else ()), old.refused + refused)
            if got is None:
                given_up.add(name)
            tell(name, got)
    return measured
