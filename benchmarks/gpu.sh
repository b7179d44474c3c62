#!/usr/bin/env bash
# What a GPU is asked for, in one command of some ten minutes: a table, and benchmarks/results/gpu.json.
# Anywhere, with small sizes, to try it out: bash benchmarks/gpu.sh --small --out /tmp/gpu.json
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/speed.py --seconds 4 --whole --out benchmarks/results/gpu.json "$@"
