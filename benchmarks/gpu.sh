#!/usr/bin/env bash
# Measure training on a GPU, in one command: print tables, write benchmarks/results/gpu.json, and
# fail if a claim does not hold. It has not been run on a GPU yet.
# To try the script out on any machine, with small sizes: bash benchmarks/gpu.sh --small --out /tmp/gpu.json
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/gpu.py "$@"
