"""Interrupts around what must not be left half done."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from normstab.experiment.execution.worker import interrupts_held


def test_ctrl_c_waits_for_the_end_of_the_block_also_where_another_thread_gets_it():
    before, ended = signal.getsignal(signal.SIGINT), threading.Event()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    thread = threading.Thread(target=ended.wait)
    thread.start()
    reached = []
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end")
        assert reached == ["the end"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
