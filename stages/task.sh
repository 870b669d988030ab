#!/usr/bin/env bash
# task.sh sampling|training COMMAND...      run one igrpo command as a Slurm task; the .sbatch files call it
#
# The script in IGRPO_SAMPLING_ENV or IGRPO_TRAINING_ENV is sourced before COMMAND, for example the activate script of
# a virtual environment. Slurm sends USR1 before the time limit: it is forwarded, COMMAND keeps its complete blocks and
# exits with 75, and the task is requeued at most IGRPO_MAX_REQUEUES times (20). TERM (scancel, preemption) is forwarded
# without a requeue, because Slurm decides what happens next.
set -eo pipefail
case ${1:-} in
    sampling) environment=${IGRPO_SAMPLING_ENV:-} ;;
    training) environment=${IGRPO_TRAINING_ENV:-} ;;
    *) echo "error: ${1:-nothing} is neither sampling nor training" >&2; exit 2 ;;
esac
command=("${@:2}")
set -- # a sourced script would otherwise see the arguments of this one
# shellcheck source=/dev/null
if [[ $environment ]]; then source "$environment"; fi
set -u

run_again=75
child='' stopped_by=''
forward() {
    stopped_by=$1 interrupted=yes
    if [[ $child ]]; then kill -s "$1" "$child" 2>/dev/null || true; fi
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM

"${command[@]}" &
child=$!
if [[ $stopped_by ]]; then forward "$stopped_by"; fi # the signal came before the child started
# A signal ends `wait` early: wait again until COMMAND has ended.
interrupted=yes
while [[ $interrupted ]]; do
    interrupted='' code=0
    wait "$child" || code=$?
done
# Python does not handle signals while it starts.
if [[ $stopped_by ]] && ((code == 128 + $(kill -l "$stopped_by"))); then code=$run_again; fi

if ((code == run_again)) && [[ $stopped_by != TERM ]]; then
    restarts=${SLURM_RESTART_COUNT:-0} limit=${IGRPO_MAX_REQUEUES:-20}
    if ((restarts < limit)); then
        echo "task.sh: exit 75, requeued ($((restarts + 1)) of at most $limit times)" >&2
        # The id of an array means all of its tasks, so one task needs both numbers.
        task=$SLURM_JOB_ID
        if [[ ${SLURM_ARRAY_JOB_ID:-} ]]; then task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
        scontrol requeue "$task" ||
            echo "hint: Slurm rejects the requeue; stages/submit.sh submits the missing work" >&2
    else
        echo "error: stopped again after $limit requeues" >&2
        echo "hint: stages/submit.sh submits the missing work; IGRPO_MAX_REQUEUES sets the limit" >&2
    fi
fi
exit "$code"
