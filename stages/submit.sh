#!/usr/bin/env bash
# Submit the missing work of a run to Slurm: draft, select, refine and update of each iteration, each after the previous.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: stages/submit.sh RUN [options] [-- SBATCH FLAGS]

Submits the missing work of RUN to Slurm and prints a table of the jobs. After a failure, run it again to submit the
remaining work.

  --iterations N      only the next N unfinished iterations (default: all of them)
  --eval BENCH        evaluate the last policy; repeatable
  --eval-each         evaluate the policy of every iteration
  --on STAGES FLAG    an sbatch flag for these stages, for example --on draft,refine,eval --gpus=1; repeatable
  --dry-run           print the sbatch commands without submitting or writing anything
  -h, --help          print this text
  -- FLAGS            sbatch flags for every job, for example -- --partition=batch --time=2:00:00

IGRPO_SAMPLING_ENV (draft, select, refine, eval) and IGRPO_TRAINING_ENV (update) name a script that these jobs source
first, such as the bin/activate of a virtual environment. docs/slurm.md describes the details.
HELP
}

fail() { # CODE MESSAGE HINT
    printf 'error: %s\nhint: %s\n' "$2" "$3" >&2
    exit "$1"
}

run='' iterations='' dry_run='' eval_each=''
benches=() flags_for_all=() on_stages=() on_flags=()
help_hint='stages/submit.sh --help'
while (($#)); do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --dry-run) dry_run=yes ;;
        --eval-each) eval_each=yes ;;
        --iterations | --eval)
            (($# > 1)) || fail 2 "$1 needs a value" "$help_hint"
            if [[ $1 == --eval ]]; then benches+=("$2"); else iterations=$2; fi
            shift ;;
        --on)
            (($# > 2)) || fail 2 '--on needs stages and a flag' 'for example --on draft,refine --gpus=1'
            on_stages+=("$2") on_flags+=("$3")
            shift 2 ;;
        --) shift; flags_for_all=("$@"); break ;;
        -*) fail 2 "no option $1" "$help_hint; flags for sbatch come after --" ;;
        *)
            [[ ! $run ]] || fail 2 "one run at a time, not $run and $1" "$help_hint"
            run=$1 ;;
    esac
    shift
done
[[ $run ]] || fail 2 'no run directory given' "$help_hint"
[[ ! $iterations || $iterations =~ ^[1-9][0-9]*$ ]] ||
    fail 2 "--iterations $iterations is not a number above 0" "$help_hint"
[[ ! $eval_each || ${#benches[@]} -gt 0 ]] || fail 2 '--eval-each needs a benchmark' '--eval-each --eval arithmetic'
for list in "${on_stages[@]}"; do
    [[ $list =~ ^(draft|select|refine|update|eval)(,(draft|select|refine|update|eval))*$ ]] ||
        fail 2 "--on $list names no stages" 'draft, select, refine, update or eval, as in --on draft,refine --gpus=1'
done

stages_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# sbatch copies each script to another folder, so the jobs need the path of task.sh.
export IGRPO_STAGES=$stages_folder
# If this script runs inside a job, the new jobs must not inherit its shard and its count of restarts.
unset "${!SLURM_ARRAY_@}" SLURM_RESTART_COUNT
if [[ ${IGRPO_SAMPLING_ENV:-} ]]; then
    set --
    set +u
    # shellcheck source=/dev/null
    source "$IGRPO_SAMPLING_ENV"
    set -u
fi
status=$(igrpo status "$run" --json) # on failure this script ends with its error and exit code
run=$(cd "$run" && pwd)
number_of() { sed -E "s/.*\"$1\": ([0-9]+).*/\1/" <<<"$status"; }
num_shards=$(number_of num_shards) num_iterations=$(number_of num_iterations) staleness=$(number_of staleness)
read -ra unfinished <<<"$(sed -E 's/.*"unfinished": \[([^]]*)\].*/\1/; s/,//g' <<<"$status")"
stage_names=(draft select refine update)
if [[ $status != *'"select": {'* ]]; then stage_names=(draft update); fi # run.method = "grpo"

jobs_of_this_run() { # the comment of a job contains the path of its run
    squeue --me --noheader --format='%F %k' | comment="igrpo $run" awk '
        { id = $1; sub(/^[^ ]+ /, "") }
        $0 == ENVIRON["comment"] && !seen[id]++ { printf "%s%s", separator, id; separator = " " }'
}

if [[ ! $dry_run ]]; then
    command -v sbatch >/dev/null || fail 3 'sbatch does not exist on this machine' 'use a login node of the cluster, or --dry-run'
    queued=$(jobs_of_this_run)
    [[ ! $queued ]] ||
        fail 4 "jobs of this run are already in the queue: $queued" "wait for them, or: scancel $queued"
    mkdir -p "$run/slurm"
fi

table=() last=''
submit() { # STAGE ITERATION SHARDS AFTER SCRIPT_ARGUMENTS...: sets `job` to the id of the job, in a dry run to its name
    local stage=$1 name="$1-$2" iteration=$2 shards=$3 after=$4 log=%x-%j i
    local flags=(--parsable --job-name="$name" --comment="igrpo $run")
    shift 4
    if [[ $stage != select && $stage != update ]]; then flags+=(--array="$shards") log=%x-%A_%a; fi
    # sbatch expands patterns in this path, so a % is doubled.
    flags+=(--output="${run//%/%%}/slurm/$log.out")
    if [[ $after ]]; then flags+=(--dependency="afterok:$after" --kill-on-invalid-dep=yes); fi
    flags+=("${flags_for_all[@]}")
    for i in "${!on_stages[@]}"; do
        if [[ ,${on_stages[i]}, == *,"$stage",* ]]; then flags+=("${on_flags[i]}"); fi
    done
    local command=(sbatch "${flags[@]}" "$stages_folder/$stage.sbatch" "$run" "$@")
    if [[ $dry_run ]]; then
        job=$name
        printf '%q ' "${command[@]}" | sed 's/ $//'
        echo
        return
    fi
    job=$("${command[@]}") || stop_submitting "$name"
    job=${job%%;*}
    table+=("$job|$stage|$iteration|$shards|${after:--}")
}

print_table() {
    printf '%-10s  %-6s  %9s  %-12s  %s\n' job stage iteration shards after
    local row cells
    for row in "${table[@]}"; do
        IFS='|' read -ra cells <<<"$row"
        printf '%-10s  %-6s  %9s  %-12s  %s\n' "${cells[@]}"
    done
}

stop_submitting() { # NAME
    if ((${#table[@]})); then print_table; fi
    fail 1 "sbatch rejected $1; no later job was submitted" 'when the jobs above are done, run the same command again'
}

missing() { # STAGE ITERATION [BENCH]
    igrpo status "$run" --missing "$1" --iteration "$2" ${3:+--bench "$3"}
}

evaluate() { # POLICY
    local bench shards
    for bench in "${benches[@]}"; do
        shards=$(missing eval "$1" "$bench")
        if [[ $shards ]]; then submit eval "$1" "$shards" "$last" "$bench" --iteration "$1"; fi
    done
}

after() { # STAGE ITERATION: sets `dependency` to the jobs that the stage waits for, separated by colons
    # With run.staleness = 1, drafts come from the policy before: sampling goes on while the update is computed.
    dependency=$last
    if ((staleness)); then
        dependency=$sampled
        case $1 in
            draft) add_update $(($2 - 2)) ;;
            refine | update) add_update $(($2 - 1)) ;;
        esac
    fi
}

add_update() { # ITERATION: waits for the update of an iteration, too, if it was submitted
    if (($1 >= 0)) && [[ ${updates[$1]-} ]]; then dependency+=${dependency:+:}${updates[$1]}; fi
}

updates=() sampled=''
to_do=("${unfinished[@]:0:${iterations:-${#unfinished[@]}}}")
end=$num_iterations
if ((${#to_do[@]})); then end=$((to_do[-1] + 1)); fi
if [[ $eval_each ]]; then evaluated=$(seq 1 "$end"); else evaluated=$end; fi

for ((iteration = 0; iteration < end; iteration++)); do
    if [[ " ${to_do[*]} " == *" $iteration "* ]]; then
        for stage in "${stage_names[@]}"; do
            shards=0-$((num_shards - 1))
            # In an iteration without a directory everything is missing.
            if [[ $stage == update ]]; then
                shards=0
            elif [[ -d $run/iteration_$(printf %04d "$iteration") ]]; then
                shards=$(missing "$stage" "$iteration")
            fi
            if [[ $shards ]]; then
                after "$stage" "$iteration"
                submit "$stage" "$iteration" "$shards" "$dependency" "$iteration"
                last=$job
                if [[ $stage == update ]]; then updates[iteration]=$job; else sampled=$job; fi
            fi
        done
    fi
    if [[ $'\n'$evaluated$'\n' == *$'\n'$((iteration + 1))$'\n'* ]]; then evaluate $((iteration + 1)); fi
done

if [[ $dry_run ]]; then
    exit 0
elif ((${#table[@]})); then
    print_table
else
    echo "nothing is missing" >&2
fi
