# The work that is done again and again. `just` alone lists it.

python := env("PYTHON", "python3")

# List the recipes.
default:
    @just --list

# Install for development: editable, with test, hub and GGUF extras.
install:
    {{ python }} -m pip install -e '.[dev]'

# Run the tests.
test *args:
    {{ python }} -m pytest {{ args }}

# Check style.
lint:
    {{ python }} -m ruff check src tests data benchmarks docs
    {{ python }} -m ruff format --check src tests data benchmarks docs

# Check types: strict on the pure rooms.
types:
    {{ python }} -m mypy

# Format.
fmt:
    {{ python }} -m ruff check --fix src tests data benchmarks docs
    {{ python }} -m ruff format src tests data benchmarks docs

# Write the pages of docs/reference/ that are made from the code.
reference:
    {{ python }} docs/make_reference.py

# A tiny policy learns arithmetic in a few minutes.
quickstart *args:
    igrpo quickstart {{ args }}

# Three iterations of SmolLM2-135M-Instruct on one-digit arithmetic; --hub takes the weights from the Hub.
smollm2 run="runs/smollm2" *source:
    {{ python }} data/smollm2/make_policy.py models/smollm2 {{ source }}
    test -e {{ run }}/run.toml || igrpo init {{ run }} --preset smollm2
    igrpo run {{ run }}
    igrpo verify {{ run }}

# The grader against files of known cases: agreement, time and memory.
grader-agreement *args:
    {{ python }} benchmarks/grader_agreement.py {{ args }}

# A judge model against hacks, forged verdicts and empty answers: `just judge-trial http://node7:8000 MODEL`.
judge-trial *args:
    {{ python }} benchmarks/judge_trial.py {{ args }}

# The same completions by our grader and by other harnesses: `just harness-agreement export …`, then `score …`.
harness-agreement *args:
    {{ python }} benchmarks/harness_agreement.py {{ args }}

# Files over 300 lines and functions over 60: there should be none.
sizes:
    {{ python }} benchmarks/sizes.py src

# The quickstart in three arms with equal rollouts; prints accuracy and diagnostics by iteration.
arms output="runs/arms" *args:
    {{ python }} benchmarks/arms.py {{ output }} {{ args }}

# `igrpo draft` against raw LLM.generate, on the same prompts and settings.
bench-draft model="models/smollm2" *args:
    {{ python }} benchmarks/draft.py {{ model }} {{ args }}

# Where an iteration's time goes, and iGRPO 4 + 4 against GRPO 8.
bench-iteration model="models/smollm2" *args:
    {{ python }} benchmarks/iteration.py {{ model }} {{ args }}

# One gradient step against TRL's GRPOTrainer, on the same model and tensors.
bench-update model="models/smollm2" *args:
    {{ python }} benchmarks/update.py {{ model }} {{ args }}

# Everything that needs a GPU in one go: its tests, and the benchmarks there.
gpu output="runs/gpu" model="":
    PYTHON={{ python }} benchmarks/gpu.sh {{ output }} {{ model }}

# vLLM against transformers: log-probs of the same completions, accuracy on the same problems.
engine-agreement model="models/smollm2" *args:
    {{ python }} benchmarks/engine_agreement.py {{ model }} {{ args }}

# `igrpo report` on a run of half a million rollouts: seconds, memory, size.
bench-report *args:
    {{ python }} benchmarks/report.py {{ args }}

# Every fault, tried to the end: kills, signals, full disks, flipped bits, races; `--small` tries a sample of each.
[positional-arguments]
faults *args:
    {{ python }} tests/faults/table.py "$@"

# `igrpo run` killed every 20 to 60 seconds for so many minutes; then a twin does as much undisturbed: the bytes must be the same.
killed-run minutes="30":
    {{ python }} tests/faults/killed_run.py {{ minutes }}

# Damaged configs, problems, manifests, policies and shards for the readers: `just fuzz 10` goes on for ten minutes.
fuzz minutes="10":
    {{ python }} tests/faults/fuzz.py {{ minutes }}

# `igrpo select` over ten thousand, a hundred thousand and a million drafts: rows a second, peak memory.
bench-select *args:
    {{ python }} benchmarks/selection.py {{ args }}
