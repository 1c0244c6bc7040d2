"""First command benchmark: seconds from `sdvideo demo` to its GIF, in a fresh process each time.

python benchmarks/first_command.py [--repeats 3]    writes results/first-command.json and prints it

The peer is the same process without drawing: importing torch and open_clip alone. Where it may (Linux, as root), the
first run starts with the system's file cache emptied, as after a start of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

RESULT = Path(__file__).parent / "results" / "first-command.json"
CACHES = Path("/proc/sys/vm/drop_caches")
DEMO = ["-m", "sdvideo_core", "demo", "a red circle moving left"]
COMMANDS = {
    "25 steps": DEMO,
    "4 steps": [*DEMO, "--few-steps"],
    "imports": ["-c", "import torch, open_clip"],
}


def empty_file_cache() -> bool:
    try:
        os.sync()
        CACHES.write_text("3", encoding="ascii")
    except OSError:
        return False
    return True


def seconds(arguments: list[str], folder: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=folder)
    return round(time.perf_counter() - start, 2)


def measure(arguments: list[str], repeats: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        emptied = empty_file_cache()
        first, *others = [seconds(arguments, folder) for _ in range(repeats + 1)]
    return {"first": first, "file cache emptied before": emptied, "again": others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs after the first")
    options = parser.parse_args()
    result = {
        "what": "seconds of a fresh process; the demo's is from the command to its GIF",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **{"python": platform.python_version(), "torch": torch.__version__},
        **{name: measure(arguments, options.repeats) for name, arguments in COMMANDS.items()},
    }
    text = json.dumps(result, indent=1)
    RESULT.write_text(text + "\n", encoding="utf-8")
    print(text)  # noqa: T201


if __name__ == "__main__":
    main()
