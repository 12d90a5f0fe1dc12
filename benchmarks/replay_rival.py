"""One run of Dynamo's own trace replay, as a JSON object on standard output. Needs nothing but its wheel (ai-dynamo-runtime).

PYTHON benchmarks/replay_rival.py TRACE --workers 8 --mode kv_router --backend sglang
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time

os.environ.setdefault("DYN_LOG", "error")  # it logs a line per request otherwise


def main() -> None:
    """Run it once; CPU time is that of the call alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--mode", default="round_robin")
    parser.add_argument("--backend", default="sglang")
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=16384)
    options = parser.parse_args()
    import dynamo._core as core

    engine = {
        "backend": options.backend,
        "block_size": options.block_size,
        "num_gpu_blocks": options.blocks,
        "worker_type": "aggregated",
    }
    begin = time.process_time()
    replayed = core.run_mocker_trace_replay(
        [options.trace], extra_engine_args={"engine": engine}, num_workers=options.workers, router_mode=options.mode
    )
    cpu_seconds = time.process_time() - begin
    summary = dict(replayed.summary)
    answer = {
        "requests": summary["completed_requests"],
        "hit": summary["prefix_cache_reused_ratio"],
        "ttft_ms": summary["mean_ttft_ms"],
        "itl_ms": summary["mean_itl_ms"],
        "cpu_seconds": cpu_seconds,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
