# What the launch scripts share: sourced by each. All parts in one terminal, stopped together and in order.
#
# A script gives MODEL its default, calls `begin "$@"`, starts workers, then `serve N` with the router's options.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo "$PWD/.venv/bin/python" || command -v python3)}
WORKERS=() ROUTER="" BROKER="" URL=""

usage() {
  cat <<END
usage: launch/$(basename "$0") [--fake] [--model MODEL] [--http-port PORT] [-- OPTIONS OF SGLANG]

$ABOUT

  --fake            fake workers instead of SGLang: no GPU, no model to fetch, the same router
  --model MODEL     a folder, or a name on the Hugging Face hub (default: $MODEL)
  --http-port PORT  of the router (default: 8000; 0: a free one)

PYTHON is the interpreter that has warmpath, SGLANG_PYTHON the one that has SGLang (default: the same), CUDA_VISIBLE_DEVICES the
GPUs to share out. Ctrl-C stops everything: workers first, each finishing what it has.
END
}

begin() { # reads the options, and starts a broker
  local port=8000
  FAKE="" EXTRA=()
  while (($#)); do
    case $1 in
      --fake) FAKE=yes ;;
      --model) MODEL=$2 && shift ;;
      --http-port) port=$2 && shift ;;
      --) shift && EXTRA=("$@") && break ;;
      -h | --help) usage && exit 0 ;;
      *) echo "launch/$(basename "$0"): error: no option $1; see --help" >&2 && exit 2 ;;
    esac
    shift
  done
  IFS=, read -ra DEVICES <<<"${CUDA_VISIBLE_DEVICES:-0,1,2,3,4,5,6,7}"
  FOLDER=$(mktemp -d)
  trap finish EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  if [ -n "$FAKE" ]; then
    MODEL=$PWD/sim/tinymodel/model ENGINE=(--engine-command "$PYTHON -m sim.worker")
  else
    ENGINE=(--python "${SGLANG_PYTHON:-$PYTHON}")
  fi
  TOKENIZER=$(tokenizer "$MODEL")
  local nats server
  nats=$(free_port)
  server=$(dirname "$PYTHON")/nats-server
  [ -x "$server" ] || server=nats-server
  PLACE=(--nats "nats://127.0.0.1:$nats" --discovery file --discovery-path "$FOLDER/registry")
  ROUTE=(--http-port "$port" --model-path "$TOKENIZER" --min-workers)
  setsid "$server" -a 127.0.0.1 -p "$nats" -l "$FOLDER/nats.log" &
  BROKER=$!
}

worker() { # NAME DEVICES OPTIONS…: an SGLang server with its adapter on so many of the GPUs; workers take them in turn
  local name=$1 devices=$2 taken=("${DEVICES[@]:0:$2}")
  shift 2
  DEVICES=("${DEVICES[@]:$devices}")
  CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${taken[*]}") setsid "$PYTHON" -m workers.sglang "${PLACE[@]}" "${ENGINE[@]}" \
    --model-path "$MODEL" --served-model-name "$NAME" --port "$(free_port)" "$@" "${EXTRA[@]}" > >(prefixed "$name") 2>&1 &
  WORKERS+=($!)
}

serve() { # WORKERS OPTIONS…: the router, ready once so many workers are; until something ends
  setsid "$PYTHON" -m router "${PLACE[@]}" "${ROUTE[@]}" "$@" > >(prefixed router) 2>&1 &
  ROUTER=$!
  local status=0
  wait -n "$ROUTER" "$BROKER" "${WORKERS[@]}" || status=$?
  echo "a part ended with status $status: stopping the others" >&2
  exit $((status ? status : 1))
}

prefixed() { # the lines of a part, each after its name
  local line
  while IFS= read -r line; do
    echo "[$1] $line"
    if [ "$1" = router ] && [[ $line == 'ready {'* ]]; then
      line=${line#*\"http\": \"} && try "${line%%\"*}"
    fi
  done
}

try() { # URL: a request to paste
  printf '\nTry:  curl %s/v1/chat/completions -H "Content-Type: application/json" -d '\''%s'\''\n\n' "$1" \
    "{\"model\": \"$NAME\", \"messages\": [{\"role\": \"user\", \"content\": \"Which worker holds my prefix?\"}], \"max_tokens\": 30}"
}

finish() { # workers first, so that the router carries on with what they hand over
  trap - EXIT
  trap '' INT TERM HUP
  stop "${WORKERS[@]}"
  stop $ROUTER
  stop $BROKER
  rm -rf "$FOLDER"
}

stop() { # PIDS: ask them, and wait; each has bounds of its own
  (($#)) || return 0
  kill -TERM "$@" 2>/dev/null || true
  wait "$@" 2>/dev/null || true
}

tokenizer() { # MODEL: a folder with its tokenizer and template, fetched if need be
  if [ -d "$1" ]; then
    echo "$1"
  else
    "$PYTHON" -c 'import sys; from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], allow_patterns=["*.json", "*.jinja"]))' "$1"
  fi
}

free_port() {
  "$PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
