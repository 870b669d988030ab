# Recipes for development. `just` lists them.

python := env("PYTHON", "python3")

# List the recipes.
default:
    @just --list

# Install for development: editable, with test, hub and GGUF extras, in the tested versions.
install:
    {{ python }} -m pip install -c constraints.txt -e '.[dev]'

# Run the tests.
test *args:
    {{ python }} -m pytest {{ args }}

# Check style.
lint:
    {{ python }} -m ruff check src tests data studies benchmarks docs .ci
    {{ python }} -m ruff format --check src tests data studies benchmarks docs .ci

# Check types, in strict mode for the pure rooms.
types:
    {{ python }} -m mypy

# Format.
fmt:
    {{ python }} -m ruff check --fix src tests data studies benchmarks docs .ci
    {{ python }} -m ruff format src tests data studies benchmarks docs .ci

# Generate the pages of docs/reference/ from the code.
reference:
    {{ python }} docs/make_reference.py

# Train a tiny policy for a few minutes.
quickstart *args:
    igrpo quickstart {{ args }}

# Train SmolLM2-135M-Instruct for three iterations on one-digit arithmetic; --hub loads the weights from the Hub.
smollm2 run="runs/smollm2" *source:
    {{ python }} data/smollm2/make_policy.py models/smollm2 {{ source }}
    test -e {{ run }}/run.toml || igrpo init {{ run }} --preset smollm2
    igrpo run {{ run }}
    igrpo verify {{ run }}

# Compare the grader with files of known cases: agreement, time and memory.
grader-agreement *args:
    {{ python }} benchmarks/grader_agreement.py {{ args }}

# Test a judge model with hacks, forged verdicts and empty answers: `just judge-trial http://node7:8000 MODEL`.
judge-trial *args:
    {{ python }} benchmarks/judge_trial.py {{ args }}

# Compare our grader with other harnesses on the same completions: `just harness-agreement export …`, then `score …`.
harness-agreement *args:
    {{ python }} benchmarks/harness_agreement.py {{ args }}

# Print files and lines by room; fail on long files and functions, small files with one importer, and import cycles.
sizes:
    {{ python }} benchmarks/sizes.py

# Write constraints.txt and constraints-oldest.txt from the dependencies in pyproject.toml.
lock:
    {{ python }} .ci/constraints.py

# Run the tests with the newest and with the oldest allowed dependencies, each in a fresh virtual environment.
drift *which="newest oldest":
    for each in {{ which }}; do bash .ci/drift $each || exit; done

# Compare `igrpo draft` with raw LLM.generate on the same prompts and settings.
bench-draft model="models/smollm2" *args:
    {{ python }} benchmarks/draft.py {{ model }} {{ args }}

# Measure the time of the parts of an iteration, for iGRPO 4 + 4 and GRPO 8.
bench-iteration model="models/smollm2" *args:
    {{ python }} benchmarks/iteration.py {{ model }} {{ args }}

# Compare one gradient step with TRL's GRPOTrainer on the same model and tensors.
bench-update model="models/smollm2" *args:
    {{ python }} benchmarks/update.py {{ model }} {{ args }}

# Run everything that needs a GPU: tests and benchmarks.
gpu output="runs/gpu" model="":
    PYTHON={{ python }} benchmarks/gpu.sh {{ output }} {{ model }}

# Compare vLLM with transformers: log-probs of the same completions, accuracy on the same problems.
engine-agreement model="models/smollm2" *args:
    {{ python }} benchmarks/engine_agreement.py {{ model }} {{ args }}

# Measure `igrpo report` on a run with half a million rollouts: seconds, memory, size.
bench-report *args:
    {{ python }} benchmarks/report.py {{ args }}

# Inject every fault at every operation: kills, signals, full disks, flipped bits, races; `--small` makes one try of each.
[positional-arguments]
faults *args:
    {{ python }} tests/faults/table.py "$@"

# Measure every causal-LM class of transformers: trainer, sampler, published policy, LoRA. Continues the file of results.
architectures results="architectures.jsonl" *cases:
    {{ python }} tests/architectures/table.py {{ results }} {{ cases }}

# Kill `igrpo run` every 20 to 60 seconds for some minutes, and compare all files with those of an undisturbed run.
killed-run minutes="30":
    {{ python }} tests/faults/killed_run.py {{ minutes }}

# Read damaged configs, problems, manifests, policies and shards for some minutes.
fuzz minutes="10":
    {{ python }} tests/faults/fuzz.py {{ minutes }}

# Measure `igrpo select` over ten thousand, a hundred thousand and a million drafts: rows per second, peak memory.
bench-select *args:
    {{ python }} benchmarks/selection.py {{ args }}
