#!/usr/bin/env bash
# Runs every fuzz target, or those named, for SECONDS_EACH seconds (600 if not given) each, and
# prints how many inputs were tried. Needs a C++ compiler. Findings are in fuzz/artifacts; a target
# that finds something fails the script.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo fuzz --version > /dev/null 2>&1; then
    cargo install cargo-fuzz
fi
# Everything is safe Rust, and the targets limit allocations themselves: without a sanitizer the
# stable toolchain will do.
cargo fuzz build --sanitizer none

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(cargo fuzz list)
fi
failed=0
for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target" "fuzz/seeds/$target"
    log="fuzz/target/$target.log"
    echo "=== $target"
    cargo fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="${SECONDS_EACH:-600}" -timeout=5 -rss_limit_mb=1024 -print_final_stats=1 \
        > "$log" 2>&1 || failed=1
    grep -E "^(Done|stat::number_of_executed_units|stat::peak_rss_mb|SUMMARY|Test unit)" "$log" || true
done
exit "$failed"
