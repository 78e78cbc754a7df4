"""Run the benchmarks and print their Markdown: `python -m tests.benchmarks [NAME...]`, or `--device cpu|cuda`.

Every `bench_*.py` beside this file is a script and gets a process of its own: no benchmark inherits threads or caches.
With `--device` it is the table of `device_table` instead: bits, then times in ratio to a yardstick.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(names: list[str]) -> int:
    if any(name.split("=")[0] == "--device" for name in names):
        from tests.benchmarks import device_table

        return device_table.main(names)
    scripts = {path.stem.removeprefix("bench_"): path for path in sorted(HERE.glob("bench_*.py"))}
    unknown = [name for name in names if name not in scripts]
    if unknown:
        print(f"unknown benchmark {', '.join(unknown)} (there are: {', '.join(scripts)})", file=sys.stderr)
        return 2
    commands = [[sys.executable, "-m", f"tests.benchmarks.bench_{name}"] for name in names or scripts]
    codes = [subprocess.run(command, cwd=HERE.parents[1]).returncode for command in commands]
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
