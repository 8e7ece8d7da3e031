#!/bin/bash
# Trains with processes that Open MPI 5 starts: launch/mpirun.sh [flags of crepe_dist.train]     (docs/how-to/mpi.md)
# MPI only starts them, and passes signals on. Exit code 75: stopped and saved; the same command goes on.

processes=2
hosts= # node1:4,node2:4, the first is that of rank 0; empty: those that the scheduler gave, or this one
interface= # the network that the hosts share, such as eth0; empty: that of the first host's address
python=.venv/bin/python # at the same place on every host

# Nothing to edit from here on.
set -eu

for file in "${PBS_NODEFILE:-}" "${LSB_DJOB_HOSTFILE:-}" "${PE_HOSTFILE:-}"; do
    if [ -z "${first:-}" ] && [ -n "$file" ]; then first=$(awk 'NR == 1 { print $1 }' "$file"); fi
done
if [ -n "$hosts" ]; then first=${hosts%%[:,]*}; fi
if [ -n "${first:-}" ]; then export MASTER_ADDR=${MASTER_ADDR:-$first}; fi
if [ -n "$interface" ]; then export HOROVOD_GLOO_IFACE=$interface; fi
export PYTHONUNBUFFERED=1

flags=(-np "$processes" --wdir "$PWD" --output tag)
if [ -n "$hosts" ]; then flags+=(--host "$hosts"); fi
# Open MPI would give each of two processes one core, whatever the number of its threads.
flags+=(--bind-to none)
# To other hosts nothing of the environment goes by itself.
for name in MASTER_ADDR MASTER_PORT PYTHONUNBUFFERED OMP_NUM_THREADS HOROVOD_GLOO_IFACE CREPE_DIST_MEETING_SECONDS; do
    if [ -n "${!name:-}" ]; then flags+=(-x "$name"); fi
done

mpirun "${flags[@]}" "$python" -m crepe_dist.train "$@" &
mpirun=$!
# Told to end, mpirun kills all a second later. This signal it passes on, and to those that train it means the same.
told=
trap 'told=yes; kill -USR2 "$mpirun"' TERM INT HUP
code=0
wait "$mpirun" || code=$?
while [ -n "$told" ]; do # a signal ends the waiting, not mpirun
    told=
    code=0
    wait "$mpirun" || code=$?
done
exit "$code"
