"""How long a browser takes for the page of a long run: load_seconds, from the start of loading until all figures are
drawn; write_seconds, for `seedtune report`; page_megabytes.

    python benchmarks/page.py RUN --iterations 1000

The long run is RUN (the folder of any run, the demo's say) with its iterations and evaluations repeated; it is written
to a temporary folder. Needs Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import http.server
import json
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from itertools import cycle, islice
from pathlib import Path

from common import report
from seedtune.journal import record
from seedtune.report import run_page
from seedtune.utils.files import read_lines

#: Tells us when the last figure was drawn, on the clock of the page.
WATCH = """
const seen = setInterval(() => {
  if (document.body.dataset.drawn !== "yes") return;
  clearInterval(seen);
  fetch("/drawn", { method: "POST", body: String(performance.now()) });
}, 5);
"""


def lengthen(run: Path, target: Path, iterations: int) -> None:
    """A copy of the run with so many iterations, and an evaluation after every tenth."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("checkpoint-*", "report", "*.safetensors", ".lock"))
    lines = [{k: v for k, v in line.items() if k != "chain"} for line in read_lines(run / "journal.jsonl")]
    header, steps = lines[0], [line for line in lines[1:] if "t" in line and "kind" not in line]
    chain, text = record.ROOT, []
    for line in [header, *({**line, "t": t} for t, line in enumerate(islice(cycle(steps), iterations), start=1))]:
        sealed, chain = record.seal(line, chain)
        text.append(sealed)
    (target / "journal.jsonl").write_text("".join(text))
    metrics = read_lines(run / "metrics.jsonl")
    trained = [line for line in metrics if "reward" in line]
    evaluated = [line for line in metrics if "eval/reward" in line]
    long = [{**line, "step": t} for t, line in enumerate(islice(cycle(trained), iterations), start=1)]
    long += [{**line, "step": 10 * n} for n, line in enumerate(islice(cycle(evaluated), iterations // 10 + 1))]
    long.sort(key=lambda line: line["step"])
    (target / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in long))


def load_seconds(page: Path) -> float:
    """On the page's own clock: from the start of loading until the last figure is drawn."""
    browser = next(found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name)))
    before, after = page.read_text().rsplit("</body>", 1)
    text = f"{before}<script>{WATCH}</script></body>{after}".encode()
    told: queue.Queue[float] = queue.Queue()

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(text)

        def do_POST(self) -> None:
            told.put(float(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server, tempfile.TemporaryDirectory() as profile:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = [f"--user-data-dir={profile}", "--headless", "--no-sandbox", "--disable-gpu"]
        command = [browser, *options, "--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as it:
            try:
                return told.get(timeout=60) / 1000
            finally:
                it.terminate()
                it.wait()
                server.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        long = Path(folder) / "run"
        lengthen(options.run, long, options.iterations)
        started = time.perf_counter()
        page = run_page.write(long)
        found = {"write_seconds": time.perf_counter() - started, "page_megabytes": page.stat().st_size / 1e6}
        found["load_seconds"] = min(load_seconds(page) for _ in range(3))
    report(found, options.json)
