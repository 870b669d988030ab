#!/usr/bin/env bash
# Run one iteration in a run directory. Each line is idempotent: run the script again after any stop.
set -euo pipefail
cd "${1:?usage: iteration.sh RUN}"
igrpo draft    # policies/k             -> iteration_k/draft
igrpo select   # iteration_k/draft      -> iteration_k/select
igrpo refine   # iteration_k/select     -> iteration_k/refine
igrpo update   # all of the above       -> iteration_k/update, policies/k+1
igrpo status
