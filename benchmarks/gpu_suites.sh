#!/usr/bin/env bash
# What a GPU is asked for of Craftax and SMAX, in one command; needs the extras craftax and jaxmarl.
# Writes benchmarks/results/{environments-gpu,craftax-rnn,smax-2s3z}.json.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/environments.py
python benchmarks/scores.py craftax-rnn smax-2s3z
