#!/usr/bin/env bash
# A design optimisation as a chain of batch jobs. Each job goes on where the one before it stopped, ends in time, and
# submits the next one, until the run is over. Components that the problem names by path are served inside the job.
#
#     sbatch job.sh PROBLEM RUN [options of `tesseract-flow optimize`, such as --set n=50 --max-steps 1000]
#
# RUN is a folder that all jobs see; results and journal are in it. Change the lines below as your cluster wants them, or
# say it with variables that the next jobs inherit, such as SBATCH_PARTITION and SBATCH_TIMELIMIT.
#
#SBATCH --job-name=tesseract-flow
#SBATCH --nodes=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --open-mode=append
set -u
problem=$1 run=$2
shift 2
mkdir -p "$run"
# Slurm runs a copy that is gone after the job; the next job is submitted from this one.
[ "$0" -ef "$run/job.sh" ] || cp "$0" "$run/job.sh"

# How many steps the journal has, or -1.
steps() {
    [ -d "$run/journal" ] || { echo -1; return; }
    tesseract-flow report "$run/journal" --out "$run" >/dev/null 2>&1 || { echo -1; return; }
    python -c 'import json, sys; print(json.load(open(sys.argv[1]))["steps"])' "$run/result.json"
}

before=$(steps)
is_late=
tesseract-flow optimize "$problem" --journal "$run/journal" --out "$run" --until "${UNTIL:-slurm}" "$@" &
# A step that takes much longer than all before it: the last minute has begun, and what is finished is in the journal.
trap 'is_late=yes; kill -TERM $!' USR1
wait $!
code=$?
if [ -n "$is_late" ]; then
    wait $!
    code=$?
fi
if [ -n "$is_late" ] && [ "$code" -gt 128 ]; then
    code=75
    if [ "$(steps)" -le "$before" ]; then
        echo "No step was finished in this job: a step needs more time than a job has (--time)." >&2
        exit 1
    fi
fi
if [ "$code" = 75 ]; then
    sbatch "$run/job.sh" "$problem" "$run" "$@" || exit 1
    exit 0
fi
exit "$code"
