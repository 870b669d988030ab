#!/usr/bin/env bash
# task.sh sampling|training COMMAND...      one igrpo command as a Slurm task; the .sbatch files end in it
#
# Before COMMAND the script that IGRPO_SAMPLING_ENV or IGRPO_TRAINING_ENV names is sourced (a virtual environment's
# activate). USR1 says that the time limit is near: it is passed on, COMMAND keeps what it has and exits 75, and the
# task goes back into the queue, at most IGRPO_MAX_REQUEUES times (20). TERM (scancel, preemption) is passed on and left
# at that: whoever sent it knows what comes next.
set -eo pipefail
case ${1:-} in
    sampling) environment=${IGRPO_SAMPLING_ENV:-} ;;
    training) environment=${IGRPO_TRAINING_ENV:-} ;;
    *) echo "error: ${1:-nothing} is neither sampling nor training" >&2; exit 2 ;;
esac
command=("${@:2}")
set -- # what is sourced sees the arguments of this script otherwise
# shellcheck source=/dev/null
if [[ $environment ]]; then source "$environment"; fi
set -u

again_later=75
child='' stopped_by=''
pass_on() {
    stopped_by=$1 interrupted=yes
    if [[ $child ]]; then kill -s "$1" "$child" 2>/dev/null || true; fi
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

"${command[@]}" &
child=$!
if [[ $stopped_by ]]; then pass_on "$stopped_by"; fi # it came before there was a child to pass it on to
# A signal ends `wait` early: wait again until it is COMMAND that ended.
interrupted=yes
while [[ $interrupted ]]; do
    interrupted='' code=0
    wait "$child" || code=$?
done
# Stopped before it could say so itself: while Python was starting.
if [[ $stopped_by ]] && ((code == 128 + $(kill -l "$stopped_by"))); then code=$again_later; fi

if ((code == again_later)) && [[ $stopped_by != TERM ]]; then
    restarts=${SLURM_RESTART_COUNT:-0} limit=${IGRPO_MAX_REQUEUES:-20}
    if ((restarts < limit)); then
        echo "task.sh: exit 75, back into the queue (time $((restarts + 1)) of at most $limit)" >&2
        # The number of an array names all of its tasks, so a task of one needs both numbers.
        task=$SLURM_JOB_ID
        if [[ ${SLURM_ARRAY_JOB_ID:-} ]]; then task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
        scontrol requeue "$task" ||
            echo "hint: Slurm does not take it back; stages/submit.sh submits what is missing" >&2
    else
        echo "error: stopped again after $limit requeues" >&2
        echo "hint: stages/submit.sh submits what is missing; IGRPO_MAX_REQUEUES sets the limit" >&2
    fi
fi
exit "$code"
