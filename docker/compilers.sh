#!/bin/sh
# Build stage, first step: what compiles Horovod and the kernels; with `cu112` also CUDA 11.8, of Debian's non-free part.
set -eu
flavour=$1
export DEBIAN_FRONTEND=noninteractive

packages="ca-certificates g++ python3-venv"
if [ "$flavour" = cu112 ]; then
    # nvcc 11.8 takes g++ up to 11. libcuda1 comes along: without it MXNet's GPU flavour is not even imported.
    packages="$packages g++-11 nvidia-cuda-toolkit"
    # As debootstrap, or as Debian's image writes its sources.
    sed -i 's/^\(deb .* main\)$/\1 contrib non-free/' /etc/apt/sources.list 2>/dev/null || true
    sed -i 's/^\(Components: main\)$/\1 contrib non-free/' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true
fi
apt-get update -qq
# shellcheck disable=SC2086 # words, on purpose
apt-get install -y -qq --no-install-recommends $packages
rm -rf /var/lib/apt/lists/*
