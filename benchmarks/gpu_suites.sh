#!/usr/bin/env bash
# Measure speeds and scores of Craftax and SMAX on a GPU, in one command; needs the extras craftax and jaxmarl.
# Writes benchmarks/results/{environments-gpu,craftax-rnn,smax-2s3z-published}.json.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/environments.py
python benchmarks/scores.py craftax-rnn smax-2s3z-published
