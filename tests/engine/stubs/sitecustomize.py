"""Lets SGLang 0.5.23 run on a CPU; tests/engine/install.py puts this folder on PYTHONPATH.

Always: torchvision's default build cannot load its CUDA extension; SGLang's imports only need two of its operators declared.
WARMPATH_ENGINE_HOST_TIER=1: HiCache's host pool, which pins memory and copies with CUDA kernels, becomes plain memory and copies.
WARMPATH_ENGINE_TRANSFER=1: NIXL, which SGLang has register KV as video memory, registers it as main memory.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

try:
    import torch
except ImportError:  # pip runs with this folder on its path before torch is there
    torch = None


class Afterwards(MetaPathFinder):
    """Changes modules right after they were imported: `changes[name](module)`."""

    def __init__(self, changes):
        self.changes = changes

    def find_spec(self, name, path, target=None):
        change = self.changes.get(name)
        spec = PathFinder.find_spec(name, path, target) if change else None
        if spec is not None:
            run = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (run(module), change(module))
        return spec


class Immediate:
    """A stream or an event of a device that has done everything by the time it is asked."""

    def __init__(self, *arguments, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def query(self):
        return True

    def elapsed_time(self, end):
        return 0.0

    def record_event(self, event=None):
        return event or Immediate()

    def nothing(self, *arguments, **options):
        return None

    record = wait = wait_event = wait_stream = synchronize = nothing


def host_tier():
    """HiCache in plain memory."""

    def copy(src_layers, dst_layers, src_indices, dst_indices, page_size=1, **options):
        for source, target in zip(src_layers, dst_layers, strict=False):
            target[dst_indices] = source[src_indices].to(target.dtype)

    def unpinned(*arguments, **options):
        return None

    def common(module):
        module._cuda_host_register = module._cuda_host_unregister = unpinned

    def attention(module):
        module.transfer_kv_direct = copy
        module._cuda_host_unregister = unpinned

    here = "sglang.srt.mem_cache.pool_host"
    sys.meta_path.insert(0, Afterwards({f"{here}.common": common, f"{here}.mha": attention}))
    stream = Immediate()
    torch.cpu.Event = torch.cpu.Stream = torch.cpu.stream = Immediate
    torch.cpu.current_stream = lambda *arguments, **options: stream


def transfer():
    """NIXL between main memories."""

    def in_main_memory(method):
        def call(self, *arguments, **options):
            arguments = ["DRAM" if isinstance(value, str) and value == "VRAM" else value for value in arguments]
            options = {name: "DRAM" if value == "VRAM" else value for name, value in options.items()}
            return method(self, *arguments, **options)

        return call

    def agent(module):
        for name in ("register_memory", "get_reg_descs", "get_xfer_descs", "prep_xfer_dlist"):
            method = getattr(module.nixl_agent, name, None)
            if method is not None:
                setattr(module.nixl_agent, name, in_main_memory(method))

    sys.meta_path.insert(0, Afterwards({f"{package}._api": agent for package in ("nixl", "nixl_cu12", "nixl_cu13")}))


if torch is not None:
    # Kept in a module variable: the declarations live as long as the library object does.
    TORCHVISION = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        TORCHVISION.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    if os.environ.get("WARMPATH_ENGINE_HOST_TIER"):
        host_tier()
    if os.environ.get("WARMPATH_ENGINE_TRANSFER"):
        transfer()
