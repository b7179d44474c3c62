#!/usr/bin/env bash
# Measure speeds on a GPU, in one command of about ten minutes: print a table, and write benchmarks/results/gpu.json.
# To try the script out on any machine, with small sizes: bash benchmarks/gpu.sh --small --out /tmp/gpu.json
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/speed.py --seconds 4 --whole --out benchmarks/results/gpu.json "$@"
