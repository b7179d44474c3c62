#!/usr/bin/env bash
# Measure Atari on a GPU with 16 CPU cores, in one command of about twelve minutes; needs the extra atari.
# It measures the speeds of emulators, learner and whole loop, with the share of time that each side waits, and trains
# Pong at the published settings until it returns 18 or 10 minutes are over.
# Writes benchmarks/results/host-gpu.json and benchmarks/results/atari-pong-gpu.json.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/host.py speed atari/Pong
python benchmarks/scores.py atari-pong-gpu
