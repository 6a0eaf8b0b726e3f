#!/usr/bin/env bash
# The checks of `cargo xtask parity` on what needs no graphics card: Debian's software Vulkan device
# and Burn's other backend for processors.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! compgen -G "/usr/share/vulkan/icd.d/lvp_icd*.json" > /dev/null; then
    apt-get update -qq
    apt-get install -y -qq libvulkan1 mesa-vulkan-drivers
fi

features=()
for backend in ndarray vulkan wgpu; do
    features+=("xtask/$backend" "cn-clip/$backend")
done
cargo build --profile parity -p xtask -p cn-clip --features "$(IFS=,; echo "${features[*]}")"

# Kernels are compiled by the processor and run on it: trying many of them would only take time.
export CUBECL_AUTOTUNE_LEVEL=minimal
for device in ndarray vulkan; do
    timeout 400 target/parity/xtask parity --device "$device" --json "target/parity/$device.json"
done
# The same kernels and driver by another name.
timeout 200 target/parity/xtask parity --device wgpu --only forward

target/parity/cn-clip devices
target/parity/cn-clip devices --json > target/parity/devices.json
python3 - target/parity/devices.json << 'CHECK'
import json, sys
found = {device["device"]: device for device in json.load(open(sys.argv[1]))}
for name in ["cpu", "ndarray", "vulkan:0", "wgpu:0"]:
    assert found[name]["failure"] is None, found[name]
    assert found[name]["error"] < 1e-4, found[name]
CHECK
