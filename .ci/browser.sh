#!/usr/bin/env bash
# The page of `cn-clip serve` in headless Chromium: types a query, drops a picture, classifies one,
# switches the language, and takes pictures of the screen into target/browser. With an argument it
# serves what `cn-clip demo` has left in that directory, by the command that the demonstration
# prints; otherwise a model trained for a few steps.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v chromium > /dev/null || ! command -v chromedriver > /dev/null; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-noto-cjk
fi

binary="${CN_CLIP:-target/debug/cn-clip}"
if [ ! -x "$binary" ]; then
    cargo build --bin cn-clip
fi
demo="${1:-}"
if [ -z "$demo" ]; then
    demo=target/browser/demo
    rm -rf "$demo"
    "$binary" demo --steps 3 --output "$demo" > target/browser-demo.txt
    command=$(grep -E '^  .* serve ' target/browser-demo.txt)
else
    command="$binary serve --checkpoint $demo/logs/emoji/checkpoints/epoch_latest.pt \
        --vision-model $demo/vision.json --text-model $demo/text.json \
        --image-feats $demo/features/test_imgs.img_feat.jsonl --images $demo/data/lmdb/test"
fi
mkdir -p target/browser
eval "$command --port 0" > target/browser/address.txt &
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
    "$demo/data/zeroshot/test/000/0000.jpg" target/browser
# It ends when it is told to, and says so by its exit status.
kill -TERM "$server"
wait "$server"
trap - EXIT
