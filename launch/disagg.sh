#!/usr/bin/env bash
# One worker prefills, another decodes.
ABOUT="A prefill worker and a decode worker on a GPU each; KV goes from one to the other by NIXL."
MODEL=Qwen/Qwen3-0.6B NAME=qwen
source "$(dirname "$0")/together.sh"
begin "$@"
for role in prefill decode; do
  worker "$role" 1 --disaggregation-mode "$role" --disaggregation-transfer-backend nixl \
    --page-size 16 --tp-size 1 --trust-remote-code
done
serve 2
