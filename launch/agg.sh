#!/usr/bin/env bash
# One worker behind the router.
ABOUT="One worker on one GPU behind the router."
MODEL=Qwen/Qwen3-0.6B NAME=qwen
source "$(dirname "$0")/together.sh"
begin "$@"
worker worker 1 --page-size 16 --tp-size 1 --trust-remote-code --enable-metrics
serve 1
