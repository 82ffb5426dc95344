"""10,000 hostile outputs through every built-in scorer: which pass, which raise, whether any runs, and what takes
longest. Writes benchmarks/results/hostile.json.

    python benchmarks/hostile.py [--outputs 10000] [--gym all|risky|none] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from seedtune.utils.environment import environment

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import hostile  # noqa: E402  # of the tests
import scorers  # noqa: E402  # likewise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=int, default=10_000)
    parser.add_argument("--gym", choices=("all", "risky", "none"), default="all")
    parser.add_argument("--only", nargs="+", default=[], help="scorers whose names contain one of these; others stay")
    parsed = parser.parse_args()
    from reasoning_gym.factory import DATASETS

    from seedtune.tasks.gym.guard import RISKS

    gym = {"all": sorted(set(DATASETS) - {"composite"}), "risky": sorted(RISKS), "none": []}[parsed.gym]
    everyone = {**scorers.of_tasks(), **scorers.of_answers(), **scorers.of_gym(gym)}
    file = HERE / "results" / "hostile.json"
    found = json.loads(file.read_text())["scorers"] if parsed.only else {}
    everyone = {k: f for k, f in everyone.items() if not parsed.only or any(name in k for name in parsed.only)}
    canary = Path(tempfile.mkdtemp()) / "canary"
    for name, passes in everyone.items():
        passes("warm up")  # the first call starts a process
        slowest, passed, raised = (0.0, ""), [], []
        start = time.perf_counter()
        for kind, text in hostile.outputs(parsed.outputs, canary):
            before = time.perf_counter()
            try:
                if passes(text):
                    passed.append(text[:60])
            except Exception as e:
                raised.append(f"{type(e).__name__}: {text[:60]!r}")
            slowest = max(slowest, (time.perf_counter() - before, f"{kind}: {text[:40]!r}"))
        found[name] = {
            "slowest_seconds": round(slowest[0], 3),
            "slowest": slowest[1].encode("utf-8", "backslashreplace").decode(),
            "mean_ms": round(1000 * (time.perf_counter() - start) / parsed.outputs, 3),
            "passed": len(passed),
            "raised": len(raised),
        }
        print(f"{name:45s} {found[name]} {passed[:2]!a} {raised[:2]!a}", flush=True)
        if canary.exists():
            raise SystemExit(f"{name} ran what it should have read")
    result = {"machine": environment(), "outputs": parsed.outputs, "scorers": found}
    file.write_text(json.dumps(result, indent=1) + "\n")
    worst = max(found, key=lambda name: found[name]["slowest_seconds"])
    passed = sum(each["passed"] for each in found.values())
    print(f"slowest of all: {worst}, {found[worst]['slowest_seconds']} s; passed: {passed}")


if __name__ == "__main__":
    main()
