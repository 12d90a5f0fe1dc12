#!/usr/bin/env bash
# A mixture of experts with DP attention: two ranks prefill, two decode.
ABOUT="A prefill worker and a decode worker on two GPUs each, with DP attention: every rank has a cache of its own, and the router
sends each request to a rank. It records how tokens spread over experts: POST /admin/expert_distribution/start, with
WARMPATH_ADMIN_TOKEN set."
MODEL=silence09/DeepSeek-R1-Small-2layers NAME=deepseek
source "$(dirname "$0")/together.sh"
begin "$@"
for role in prefill decode; do
  worker "$role" 2 --disaggregation-mode "$role" --disaggregation-transfer-backend nixl \
    --tp-size 2 --dp-size 2 --enable-dp-attention --page-size 16 --trust-remote-code \
    --expert-distribution-recorder-mode stat
done
serve 2 --policy warm
