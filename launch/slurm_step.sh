# shellcheck shell=bash disable=SC2034 # what sources it uses `run`
# What slurm.sbatch and slurm_study_array.sbatch share: a step, and the job's requeue after it.
#
# PYTHON        the interpreter (.venv/bin/python)
# CONTAINER     an Apptainer image made of launch/Dockerfile, in place of PYTHON
# MAX_RESTARTS  how often a job requeues itself (20)
set -uo pipefail

refuse() {
  echo "error: $1" >&2
  exit 2
}

[[ -n ${SLURM_JOB_ID:-} ]] ||
  refuse "this script is for Slurm: submit it with sbatch $0 ...; without Slurm, launch/local_multiprocess.sh starts several processes here"

PYTHON=${PYTHON:-.venv/bin/python}
CONTAINER=${CONTAINER:-}
MAX_RESTARTS=${MAX_RESTARTS:-20}

run=("$PYTHON")
[[ -z $CONTAINER ]] || run=(apptainer exec --nv "$CONTAINER" python)

# Slurm itself ends the job where this shell gets SIGTERM (scancel, preemption): it, and not this
# script, decides then whether the job is queued again. --signal=TERM@120 is for the step alone.
ended_by_slurm=
trap 'ended_by_slurm=yes' TERM

# step COMMAND...: runs it as srun's tasks; the status is the highest of theirs.
#
# A process that fails must not take the others with it while they save (--kill-on-bad-exit=0); they end
# by themselves within the heartbeat (100 s) or the watchdog (600 s), and --wait is for what does not.
step() {
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over by itself
  srun --kill-on-bad-exit=0 --wait=900 --label "$@"
}

# end STATUS JOB: ends the script with the status of its step, and requeues the job where it can go on.
#
# 143: saved before the time was up. 75: stood still. 134 and other signals: a process or its node is
# gone. What is left (1, 2, 130) would only happen again.
end() {
  local restarts=${SLURM_RESTART_COUNT:-0}
  if [[ -z $ended_by_slurm ]] && (($1 == 75 || ($1 > 128 && $1 != 130))); then
    if ((restarts < MAX_RESTARTS)); then
      echo "status $1: requeued, restart $((restarts + 1)) of at most $MAX_RESTARTS" >&2
      scontrol requeue "$2"
    else
      echo "status $1 after $restarts restarts: not requeued; submit it again to go on" >&2
    fi
  fi
  exit "$1"
}
