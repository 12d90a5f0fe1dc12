"""Stands in for SGLang's CUDA kernels: every name imports, and raises when it is called.

On a CPU without AMX, SGLang takes torch's native path in every layer, so nothing here is ever called.
"""

__version__ = "0.0.0"


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def kernel(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} has no CPU version")

    return kernel
