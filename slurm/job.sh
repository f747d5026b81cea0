# What the templates share; they source it. sbatch runs a copy of a template, so all paths start at the folder where
# sbatch was called: the repository's root.

fail() {
  echo "error: $*" >&2
  exit 2
}

[[ -n ${SLURM_JOB_ID:-} ]] || fail "this is a job script; submit it: sbatch $0"
[[ -f train.py ]] || fail "no train.py in $PWD; call sbatch in the repository's root"

python=python
if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; fi

# Where the processes meet: on the job's first node, at a port that no other job there uses.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=$OMP_NUM_THREADS # newer versions of srun do not take it from sbatch
export PYTHONUNBUFFERED=1                  # the log shows an epoch when it is done

# train FLAG...: train.py with these flags, one process per task, on from the last checkpoint where there is one. A run
# that SLURM warned of the time limit has saved itself and ended with 138 (128 + USR1): it goes back into the queue.
train() {
  local code=0
  srun --kill-on-bad-exit=1 "$python" train.py "$@" --resume=auto || code=$?
  if [[ $code == 138 ]]; then
    echo "job $SLURM_JOB_ID is requeued and will go on"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
}
