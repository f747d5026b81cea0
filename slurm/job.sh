# Sourced by the job scripts. sbatch runs a copy of a script, so paths are relative to the folder where sbatch was
# called: the repository's root.

fail() {
  echo "error: $*" >&2
  exit 2
}

[[ -n ${SLURM_JOB_ID:-} ]] || fail "this is a job script; submit it: sbatch $0"
[[ -f train.py ]] || fail "no train.py in $PWD; call sbatch in the repository's root"

python=python
if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; fi

# Rendezvous of the processes: the job's first node, at a port derived from the job's id.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=$OMP_NUM_THREADS # newer versions of srun do not inherit it from sbatch
export PYTHONUNBUFFERED=1                  # the log shows each epoch immediately

# train FLAG...: run train.py with these flags, one process per task, resuming if there is a checkpoint.
train() { resumable train.py "$@" --resume=auto; }

# resumable SCRIPT ARGUMENT...: when SLURM signals the time limit, the run saves and exits with 138 (128 + USR1), and the
# job is requeued.
resumable() {
  local code=0
  srun --kill-on-bad-exit=1 "$python" "$@" || code=$?
  if [[ $code == 138 ]]; then
    echo "job $SLURM_JOB_ID is requeued and will resume"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
}
