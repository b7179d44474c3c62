#!/usr/bin/env bash
# What a GPU with 16 CPU cores is asked for of Atari, in one command of some twelve minutes; needs the extra atari.
# Speeds of emulators, learner and the whole loop, with the share of its time that each side waits, and Pong at the
# published settings until 18 or 10 minutes. Writes benchmarks/results/{host,pong}-gpu.json.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/host.py speed atari/Pong
python benchmarks/host.py pong atari/Pong --eval-interval 60 "$@"
