#!/bin/bash
# Train with processes that Open MPI 5 starts: launch/mpirun.sh [flags of crepe_dist.train]     (docs/how-to/many-hosts.md)
# Open MPI starts the processes and forwards signals. With mpi4py, the processes also communicate through MPI.
# Exit code 75: stopped and saved. Run the same command again to resume.

processes=2
hosts= # node1:4,node2:4, rank 0 first; empty: the scheduler's hosts, or this one
python=.venv/bin/python # the same path on every host

# Nothing to edit below.
set -eu

for file in "${PBS_NODEFILE:-}" "${LSB_DJOB_HOSTFILE:-}" "${PE_HOSTFILE:-}"; do
    if [ -z "${first:-}" ] && [ -n "$file" ]; then first=$(awk 'NR == 1 { print $1 }' "$file"); fi
done
if [ -n "$hosts" ]; then first=${hosts%%[:,]*}; fi
if [ -n "${first:-}" ]; then export MASTER_ADDR=${MASTER_ADDR:-$first}; fi
export PYTHONUNBUFFERED=1 MASTER_PORT=${MASTER_PORT:-$((20000 + RANDOM % 10000))}
# The processes prove to each other that they have this secret. It is passed by its name, so no command line contains it.
export CREPE_DIST_SECRET=${CREPE_DIST_SECRET:-$("$python" -c 'import secrets; print(secrets.token_hex(32))')}

flags=(-np "$processes" --wdir "$PWD" --output tag)
if [ -n "$hosts" ]; then flags+=(--host "$hosts"); fi
# Otherwise Open MPI binds each of two processes to one core, whatever its number of threads.
flags+=(--bind-to none)
# mpirun does not copy these variables to other hosts by itself.
for name in MASTER_ADDR MASTER_PORT CREPE_DIST_SECRET PYTHONUNBUFFERED OMP_NUM_THREADS \
    CREPE_DIST_SOCKET_IFNAME CREPE_DIST_RENDEZVOUS_SECONDS; do
    if [ -n "${!name:-}" ]; then flags+=(-x "$name"); fi
done

mpirun "${flags[@]}" "$python" -m crepe_dist.train "$@" &
mpirun=$!
# mpirun kills all processes a second after SIGTERM. It forwards SIGUSR2, which also makes training save and stop.
told=
trap 'told=yes; kill -USR2 "$mpirun"' TERM INT HUP
code=0
wait "$mpirun" || code=$?
while [ -n "$told" ]; do # a signal ends `wait`, not mpirun
    told=
    code=0
    wait "$mpirun" || code=$?
done
exit "$code"
