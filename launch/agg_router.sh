#!/usr/bin/env bash
# Two workers; each request goes to the one that holds most of its prefix.
ABOUT="Two workers on a GPU each; the router follows their caches by KV events and sends each request where its prefix is."
MODEL=Qwen/Qwen3-0.6B NAME=qwen
source "$(dirname "$0")/together.sh"
begin "$@"
for n in 1 2; do
  worker "worker$n" 1 --page-size 16 --tp-size 1 --trust-remote-code --enable-metrics
done
serve 2 --policy warm
