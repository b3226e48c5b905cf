#!/usr/bin/env bash
# Every benchmark of a GPU, most important first, in under 8 minutes on one H100. Each part writes its
# results as soon as it has them; one that fails stops no other, but the exit status says so.
#
#   benchmarks/gpu/run_all.sh OUT [CHECKPOINT DATA]     on a GPU; without a checkpoint, counterexamples only
#   DEVICE=cpu TOY=1 benchmarks/gpu/run_all.sh OUT      everything at toy size, on a CPU
set -uo pipefail

if [ $# -ne 1 ] && [ $# -ne 3 ]; then
  sed -n '2,6p' "$0" >&2
  exit 2
fi
out=$1
here=$(cd "$(dirname "$0")" && pwd)
device=${DEVICE:-cuda}
python=${PYTHON:-python}
failed=()

# NAME, SECONDS it may take, then the command.
part() {
  local name=$1 limit=$2
  shift 2
  echo "== $name"
  timeout "$limit" "$python" "$here/$@" --device "$device" --out "$out/$name" || failed+=("$name ($?)")
}

if [ -n "${TOY:-}" ]; then
  behaviour=(--smallest-exponent 4 --exponent-step 3 --items 2 --batch 4)
  large=(--shape toy --dtype float32 --items 2 --context 8 --obvious-items 1 --rounds 1)
  others=("${large[@]}")
  scaling=(--shape toy --dtype float32 --layers 3 4 --items 1 2 --context 8 16 --rounds 1)
else
  behaviour=()
  large=(--shape llama-3-8b)
  others=(--shape pythia-6.9b mistral-7b olmo-7b --layers 16 --rounds 2)
  scaling=(--shape llama-3-8b)
fi
if [ $# -eq 3 ]; then
  behaviour+=(--checkpoint "$2" --data "$3")
fi

part metric_behaviour 180 metric_behaviour.py "${behaviour[@]}"
part audit_throughput 100 audit_throughput.py "${large[@]}"
part scaling 110 scaling.py "${scaling[@]}"
part audit_throughput_others 90 audit_throughput.py "${others[@]}"

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
