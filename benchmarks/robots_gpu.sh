#!/usr/bin/env bash
# Measure robots on a GPU, in one command of a few hours, which goes on after an interruption; needs the extras brax and
# playground. It measures the speed of the environments, and trains the 25 tasks of the DeepMind Control Suite in MuJoCo
# Playground at the published settings, one after another.
# Writes benchmarks/results/robots-gpu.json and benchmarks/results/dm-control-*.json. It has not been run yet.
set -euo pipefail
cd "$(dirname "$0")/.."
python benchmarks/robots.py
python benchmarks/scores.py 'dm-control-*'
