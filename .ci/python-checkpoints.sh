#!/usr/bin/env bash
# Checkpoints to and from the Python world: torch, transformers and the unmodified reference program
# load what we write, and give the same features; we read what they write. Needs Python 3.8 to 3.12
# and PyPI the first time; what is installed stays in target/python.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/python
python=$venv/bin/python
if [ ! -f "$venv/complete" ]; then
    if ! python3 -c "import ensurepip, venv" 2> /dev/null; then
        apt-get update -qq && apt-get install -y -qq python3 python3-venv
    fi
    python3 -m venv "$venv"
    if ! "$python" -m pip download --quiet --no-deps --dest "$venv/probe" six; then
        echo "SKIPPED: python-checkpoints needs packages, and PyPI cannot be reached"
        exit 0
    fi
    # The libraries for graphics cards, without which torch does not start, one at a time: pip keeps
    # all that it installs in one go twice, and together these are gigabytes. Not triton, a compiler
    # that nothing here uses.
    install=("$python" -m pip install --quiet --no-cache-dir)
    "${install[@]}" --no-deps torch==2.4.1
    "$python" .ci/requirements.py torch triton | while read -r package; do
        "${install[@]}" "$package"
    done
    "${install[@]}" numpy==1.26.4 safetensors pillow "transformers==4.49.0"
    # Without what the reference needs for training.
    "${install[@]}" --no-deps torchvision==0.19.1 cn_clip==1.6.0 six
    touch "$venv/complete"
fi

# The same build as the tests, which makes the programs.
cargo test --quiet --no-run
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
CUDA_VISIBLE_DEVICES='' "$python" .ci/python_checkpoints.py target/debug tests/fixtures "$work"
