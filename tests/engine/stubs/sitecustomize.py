"""Lets SGLang 0.5.23 import on a CPU; tests/engine/install.py puts this folder on PYTHONPATH.

torchvision's default build cannot load its CUDA extension; SGLang's imports only need two of its operators declared.
"""

try:
    import torch
except ImportError:  # pip runs with this folder on its path before torch is there
    torch = None

if torch is not None:
    # Kept in a module variable: the declarations live as long as the library object does.
    TORCHVISION = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        TORCHVISION.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
