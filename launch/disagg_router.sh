#!/usr/bin/env bash
# Two workers prefill, two decode; each prompt goes to the prefill worker that holds most of it.
ABOUT="Two prefill and two decode workers on a GPU each. The router chooses the prefill worker by what it holds and has to do, and
the decode worker by its load."
MODEL=Qwen/Qwen3-0.6B NAME=qwen
source "$(dirname "$0")/together.sh"
begin "$@"
for n in 1 2; do
  for role in prefill decode; do
    worker "$role$n" 1 --disaggregation-mode "$role" --disaggregation-transfer-backend nixl \
      --page-size 64 --tp-size 1 --trust-remote-code
  done
done
serve 4 --policy warm
