#!/usr/bin/env bash
# Run everything that needs a GPU, one part after the other. A failed part does not stop the others.
#
#   benchmarks/gpu.sh OUTPUT [MODEL]
#
# MODEL is a small policy for the benchmarks that sample (data/smollm2/make_policy.py); without it they are skipped.
# Logs and results are written to OUTPUT, with a description of the hardware. Exits with 1 if a part failed.
set -uo pipefail
output=${1:?usage: benchmarks/gpu.sh OUTPUT [MODEL]}
model=${2:-}
python=${PYTHON:-python3}
benchmarks=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$output"
failed=()

part() { # NAME COMMAND...
    echo "== $1"
    if ! "${@:2}" > >(tee "$output/$1.txt") 2> "$output/$1.err"; then
        failed+=("$1")
        tail -n 20 "$output/$1.err"
    fi
}

part hardware nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
part versions "$python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
part tests "$python" -m pytest -m gpu -rs "$benchmarks/../tests"
part random-policy "$python" "$benchmarks/random_policy.py" "$output/qwen2.5-1.5b"
# The prompt of a refinement contains a draft: 1,024 tokens of problem and 1,024 of draft.
part update "$python" "$benchmarks/update.py" "$output/qwen2.5-1.5b" --shape 2048:8:1024-1024 --dtype bfloat16 --liger
if [[ $model ]]; then
    part update-small "$python" "$benchmarks/update.py" "$model" --dtype bfloat16
    part draft "$python" "$benchmarks/draft.py" "$model" --problems 256
    part iteration "$python" "$benchmarks/iteration.py" "$model" --problems 128
    ngram='{num_speculative_tokens = 5, prompt_lookup_max = 4, prompt_lookup_min = 2}'
    part speculation "$python" "$benchmarks/draft.py" "$model" --problems 64 --speculate "$ngram"
fi
rm -rf "$output/qwen2.5-1.5b"
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}; see $output/NAME.err" >&2
    exit 1
fi
