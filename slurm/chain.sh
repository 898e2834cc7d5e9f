#!/usr/bin/env bash
# Where a job may not requeue itself: N jobs, each of which begins when the one before has ended, on one run folder.
#
#   slurm/chain.sh N JOB RUN_DIR [OPTIONS OF SBATCH]
#   slurm/chain.sh 5 jobs/digits_evolution.yaml /scratch/me/digits --nodes=4 --ntasks-per-node=16 --time=24:00:00
#
# A job that finds the budget used up, or that the two jobs before it have finished no trial, ends at once. To end all:
# scancel with the ids that are printed here.
set -euo pipefail
if (($# < 3)); then
    echo "usage: slurm/chain.sh N JOB RUN_DIR [OPTIONS OF SBATCH]" >&2
    exit 2
fi
n=$1 job=$2 folder=$3
shift 3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$folder"
export NORD_HPC_CHAIN=1
after=()
for ((i = 1; i <= n; i++)); do
    id=$(sbatch --parsable --no-requeue --output="$folder/slurm-%j.log" ${after[@]+"${after[@]}"} "$@" \
        "$here/search.sbatch" "$job" "$folder")
    id=${id%%;*}
    echo "job $i of $n: $id"
    after=(--dependency="afterany:$id")
done
