#!/usr/bin/env bash
# Compiler that succeeds if another compilation runs at the same time. It does not know AMX.
case "$*" in
-dumpmachine) echo x86_64-linux-gnu; exit;;
--version) echo "g++ 12"; exit;;
*-mamx*) echo "unknown option -mamx-tile" >&2; exit 1;;
esac
touch "$STARTED/$$"
for _ in $(seq 200); do
    [ "$(ls "$STARTED" | wc -l)" -ge 2 ] && printf kernels >"${@: -1}" && exit
    sleep 0.1
done
echo "no other compilation was started" >&2
exit 1
