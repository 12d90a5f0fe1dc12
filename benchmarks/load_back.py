"""How fast KV comes back from host memory: what a block there costs against computing it (`HOST_COST` of the policy `warm`).

    python -m benchmarks.load_back        needs torch and a GPU

Two ways: a layer at once, as fast as the link is; and page by page, each a copy of its own, as SGLang's `direct` backend does it
(its `kernel` backend gathers, and comes close to the first).
"""

from __future__ import annotations

import sys
import time
from typing import Any

LAYERS, LAYER_TOKEN_BYTES = 32, 4096
"""Of an 8B Llama in bf16: K and V of 8 heads of 128."""
TOKENS, PAGE = 4096, 64
PREFILL_TOKENS_PER_SECOND = 44_000.0
REPEATS = 8


def seconds_of(torch: Any, copy: Any) -> float:
    """Of one call, the device's work included."""
    copy()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(REPEATS):
        copy()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / REPEATS


def main() -> int:
    """Measure, and print a line for each way."""
    try:
        import torch
    except ImportError:
        print("needs torch", file=sys.stderr)
        return 2
    size = TOKENS * LAYER_TOKEN_BYTES
    host = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(LAYERS)]
    device = [torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(LAYERS)]
    pages = torch.randperm(TOKENS // PAGE).tolist()
    width = PAGE * LAYER_TOKEN_BYTES

    def whole() -> None:
        for source, target in zip(host, device, strict=True):
            target.copy_(source, non_blocking=True)

    def paged() -> None:
        for source, target in zip(host, device, strict=True):
            for place, page in enumerate(pages):
                there, here = slice(place * width, (place + 1) * width), slice(page * width, (page + 1) * width)
                target[there].copy_(source[here], non_blocking=True)

    for name, copy in (("whole layers", whole), ("page by page", paged)):
        seconds = seconds_of(torch, copy)
        rate, cost = LAYERS * size / seconds / 1e9, seconds / TOKENS * PREFILL_TOKENS_PER_SECOND
        print(f"{name}: {rate:.1f} GB/s, {seconds / TOKENS * 1e6:.2f} µs a token, {cost:.2f} of its prefill")
    return 0


if __name__ == "__main__":
    sys.exit(main())
