# Sourced by update.sbatch and run.sbatch: sets `igrpo` to the command that starts igrpo with one process per GPU on all
# nodes of the job. IGRPO_UPDATE_PROCESSES is the number of processes per node if Slurm does not know the GPUs.
nodes=${SLURM_JOB_NUM_NODES:-1}
processes=${IGRPO_UPDATE_PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
igrpo=(igrpo)
if ((nodes * processes > 1)); then
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # Jobs on the same node need different ports.
    port=$((29500 + SLURM_JOB_ID % 1000))
    igrpo=(srun --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1
        torchrun --nnodes="$nodes" --nproc-per-node="$processes"
        --rdzv-backend=c10d --rdzv-endpoint="$head:$port" --rdzv-id="$SLURM_JOB_ID" -m igrpo_cli)
fi
