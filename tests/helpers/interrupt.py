"""Ctrl-C in the middle of a call: SIGINT from a timer, and how long the answer takes."""

import gc
import signal
import threading
import time

ALLOWED = 0.2 + 0.2  # seconds: what is promised, and what a busy machine may add


def seconds_until_answered(call, *, delay=0.3):
    """From SIGINT, sent `delay` seconds into `call`, to the KeyboardInterrupt that leaves it.

    An AssertionError if `call` returns before.  The signal is sent at most once, and one that comes
    late meets a handler that does nothing: pytest's own is back only when nothing can come any
    more.
    """
    sent, inside = [], True

    def interrupt():
        sent.append(time.perf_counter())
        # Python runs the handler in the main thread, on Windows too
        signal.raise_signal(signal.SIGINT)

    def handler(signum, frame):
        if inside:
            raise KeyboardInterrupt

    gc.collect()
    # A collection would take time, and a KeyboardInterrupt raised inside a gc callback, such as
    # hypothesis has, is lost.
    gc.disable()
    timer = threading.Timer(delay, interrupt)
    before = signal.signal(signal.SIGINT, handler)
    try:
        try:
            timer.start()
            call()
        except KeyboardInterrupt:
            return time.perf_counter() - sent[0]
        finally:
            inside = False
        raise AssertionError(
            f"the call was over before it was interrupted, {delay} s after its start"
        )
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGINT, before)
        gc.enable()
