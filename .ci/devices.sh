#!/usr/bin/env bash
# The checks of `cargo xtask parity` on what needs no graphics card: Burn's other backend for
# processors, and wgpu on Debian's software Vulkan device.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! compgen -G "/usr/share/vulkan/icd.d/lvp_icd*.json" > /dev/null; then
    apt-get update -qq
    apt-get install -y -qq libvulkan1 mesa-vulkan-drivers
fi

features=()
for backend in ndarray untuned-wgpu; do
    features+=("xtask/$backend" "cn-clip/$backend")
done
cargo build --profile parity -p xtask -p cn-clip --features "$(IFS=,; echo "${features[*]}")"

export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
for device in ndarray wgpu; do
    timeout 600 target/parity/xtask parity --device "$device" --precision fp32 \
        --json "target/$device.json"
done

target/parity/cn-clip devices --json > target/devices.json
python3 - target/devices.json << 'CHECK'
import json, sys
found = {device["device"]: device for device in json.load(open(sys.argv[1]))}
for name in ["cpu", "ndarray", "wgpu:0"]:
    assert found[name]["failure"] is None, found[name]
    assert found[name]["error"] < 1e-4, found[name]
    print(name, found[name]["error"])
CHECK

# A device without 16-bit floats says so.
python3 - > target/tiny.json << 'CONFIG'
import json
print(json.dumps(json.load(open("tests/fixtures/train_run/meta.json"))["model_config"]))
CONFIG
if message=$(target/parity/cn-clip extract-features --device ndarray --precision bf16 \
    --extract-text-feats --text-data tests/fixtures/dataset/valid_texts.jsonl --context-length 24 \
    --text-feat-output-path target/none.jsonl --resume tests/fixtures/train_run/init_fp16.pt \
    --vision-model target/tiny.json --text-model target/tiny.json 2>&1); then
    echo "bf16 on ndarray was not refused"
    exit 1
fi
grep "this device has only fp32" <<< "$message"
