#!/usr/bin/env bash
# Two workers whose caches go on in host memory.
ABOUT="Two workers on a GPU each, whose prefix caches go on in host memory (HiCache); the router knows which tier holds what."
MODEL=Qwen/Qwen3-0.6B NAME=qwen
source "$(dirname "$0")/together.sh"
begin "$@"
for n in 1 2; do
  worker "worker$n" 1 --page-size 64 --tp-size 1 --trust-remote-code --enable-metrics \
    --enable-hierarchical-cache --hicache-ratio 2 --hicache-write-policy write_through
done
serve 2 --policy warm
