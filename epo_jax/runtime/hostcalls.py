"""Calls to foreign code, such as environments and endpoints, whose errors and stalls must not stop the run."""

import dataclasses
import threading
import time
from typing import Any, Callable, Optional, Sequence


@dataclasses.dataclass(frozen=True)
class Failure:
    """A call that raised an error or did not return in time, with the reason in one line."""

    reason: str


def call_all(calls: Sequence[Callable[[], Any]], timeout: Optional[float] = None) -> list[Any]:
    """Call every function and return the results in order, with a Failure for each that raised or stalled.

    Args:
      calls: functions without arguments.
      timeout: seconds for all calls together, each in its own daemon thread, which does not keep the process alive. A
        late thread is abandoned and its result ignored. None sets no limit and runs the calls one after the other in
        this thread.
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
    except (Exception, SystemExit) as error:  # an error of foreign code fails this call only
        return Failure(' '.join(f'{type(error).__name__}: {error}'.split()))
