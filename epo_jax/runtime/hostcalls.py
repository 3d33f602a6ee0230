"""Calling code that is not ours: nothing that it raises, and no time that it takes, stops the run."""

import dataclasses
import threading
import time
from typing import Any, Callable, Optional, Sequence


@dataclasses.dataclass(frozen=True)
class Failure:
    """A call that did not return: why, in one line."""

    reason: str


def call_all(calls: Sequence[Callable[[], Any]], timeout: Optional[float] = None) -> list[Any]:
    """Calls every function and returns their results in order, a Failure for each that raised or stalled.

    Args:
      calls: functions without arguments.
      timeout: seconds for all of them together, each in a thread of its own. A thread that is late is abandoned
        (it is a daemon: it cannot keep the process alive) and its result is ignored. None: no limit, and the
        functions are called one after the other in this thread.
    """
    if timeout is None:
        return [_guarded(call) for call in calls]
    results: list[Any] = [Failure(f'no answer within {timeout:g} s') for _ in calls]
    lock, closed = threading.Lock(), [False]

    def run(i):
        result = _guarded(calls[i])
        with lock:
            if not closed[0]:
                results[i] = result

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    with lock:
        closed[0] = True
    return results


def _guarded(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (Exception, SystemExit) as error:  # whatever foreign code raises is an outcome of that call
        return Failure(' '.join(f'{type(error).__name__}: {error}'.split()))
