"""Ctrl-C, three times, at any moment of a run: words, exit code 130, no traceback, and the next run goes on."""

import os
import subprocess
import sys

import pytest

SCENARIO = """\
version: 1
name: interrupted
dataset: {name: synthetic, size: 8, train: 256, test: 64}
model: {name: mlp, width: 16}
train: {epochs: 200, batch: 16, probe_every: 0}
grid: {precision: [fp16]}
"""
PRESSED = """
import os, signal, sys
from normstab.__main__ import main

presses = []

def press(number, frame):
    presses.append(number)
    if len(presses) == TIMES:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
signal.signal(signal.SIGALRM, press)
sys.argv[1:] = ["run", "s.yaml", "--out", "out"]
signal.setitimer(signal.ITIMER_REAL, AFTER_S, GAP_S)
sys.exit(main())
"""
IGNORED = """
import os, signal, sys, threading, time
from normstab.__main__ import main

def press():
    while True:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and a shell's background jobs do
threading.Thread(target=press, daemon=True).start()
print("pressed", flush=True)
sys.argv[1:] = ["run", "s.yaml", "--out", "out"]
sys.exit(main())
"""
SWALLOWED = """
import os, signal, sys, time
from normstab.__main__ import main

class Swallows:
    def find_spec(self, name, path=None, target=None):
        if name == "normstab.study":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
            except KeyboardInterrupt:
                raise ImportError("cannot load module more than once per process")

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Swallows())
sys.argv[1:] = ["run", "s.yaml", "--out", "out"]
sys.exit(main())
"""
IN_PLACE = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def pressed(folder, *, times, after_s, gap_s):
    """Run a scenario in `folder`, interrupt it so often, and return how it ended."""
    (folder / "s.yaml").write_text(SCENARIO)
    code = PRESSED.replace("TIMES", str(times)).replace("AFTER_S", str(after_s)).replace("GAP_S", str(gap_s))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=IN_PLACE, timeout=120
    )


@pytest.mark.parametrize("after_s", [0.05, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("gap_s", [0.002, 0.2])
def test_three_interrupts_at_any_moment_end_in_words(after_s, gap_s, tmp_path):
    done = pressed(tmp_path, times=3, after_s=after_s, gap_s=gap_s)
    assert done.returncode == 130, done.stderr
    assert "normstab: interrupted" in done.stderr
    assert "Traceback" not in done.stderr and "KeyboardInterrupt" not in done.stderr


def test_a_shell_that_ignores_interrupts_is_obeyed(tmp_path):
    (tmp_path / "s.yaml").write_text(SCENARIO.replace("epochs: 200", "epochs: 2"))
    done = subprocess.run(
        [sys.executable, "-c", IGNORED], capture_output=True, text=True, cwd=tmp_path, env=IN_PLACE, timeout=120
    )
    assert done.returncode == 0 and "pressed" in done.stdout, done.stderr
    assert (tmp_path / "out/report.md").exists()


def test_an_interrupt_that_a_library_swallows_while_it_loads_is_one(tmp_path):
    (tmp_path / "s.yaml").write_text(SCENARIO)
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED], capture_output=True, text=True, cwd=tmp_path, env=IN_PLACE, timeout=120
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("normstab: interrupted")
