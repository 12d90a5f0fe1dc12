#!/usr/bin/env bash
# One worker that makes embeddings.
ABOUT="One worker on one GPU that serves /v1/embeddings."
MODEL=Qwen/Qwen3-Embedding-4B NAME=embedding
source "$(dirname "$0")/together.sh"
try() {
  printf '\nTry:  curl %s/v1/embeddings -H "Content-Type: application/json" -d '\''%s'\''\n\n' "$1" \
    "{\"model\": \"$NAME\", \"input\": \"Hello, world!\"}"
}
begin "$@"
worker worker 1 --embedding-worker --page-size 16 --tp-size 1 --trust-remote-code
serve 1
