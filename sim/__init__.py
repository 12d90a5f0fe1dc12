"""GPU-free: a model of SGLang's scheduler and cache, live behind SGLang's own HTTP and ZMQ (`python -m sim.worker`)."""
