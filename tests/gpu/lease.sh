#!/usr/bin/env bash
# Ten minutes of one GPU, used well: everything of tests/gpu and the step's figures, most valuable first. Stops itself after nine.
#
#     bash tests/gpu/lease.sh [FOLDER]          # default: $OUT, else ./lease
#
# Needs torch, transformers and pytest. Steps that need more (DeepSpeed, pydantic) come last, and say so where it is missing.
# Writes FOLDER/lease.json and one log a step, and prints a table. Exit code 0: every step ran on the GPU and was right.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -m tests.gpu.lease "${1:-${OUT:-lease}}"
