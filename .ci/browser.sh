#!/usr/bin/env bash
# The page of `cn-clip serve` in headless Chromium: types a query, drops a picture, classifies one,
# switches the language, and takes pictures of the screen into target/browser. The argument is a file
# with the output of `cn-clip demo`, whose last line is the command that is run; without it a model is
# trained for a few steps.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v chromium > /dev/null || ! command -v chromedriver > /dev/null; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-noto-cjk
fi

mkdir -p target/browser
demo="${1:-}"
if [ -z "$demo" ]; then
    demo=target/browser/demo.txt
    rm -rf target/browser/demo
    cargo run --bin cn-clip -- demo --steps 3 --output target/browser/demo > "$demo"
fi
command=$(tail -n 1 "$demo")

eval "exec $command --port 0" > target/browser/address.txt &
server=$!
trap 'kill "$server" 2> /dev/null || true' EXIT
for _ in $(seq 600); do
    if [ -s target/browser/address.txt ]; then
        break
    fi
    if ! kill -0 "$server" 2> /dev/null; then
        echo "the server did not start" >&2
        exit 1
    fi
    sleep 0.2
done
python3 .ci/browser.py "$(cat target/browser/address.txt)" \
    assets/emoji/zeroshot/test/000/0000.jpg target/browser
# It ends when it is told to, and says so by its exit status.
kill -TERM "$server"
wait "$server"
trap - EXIT
