#!/bin/sh
# Build stage, first step: install the compilers for Horovod and the kernels; with `cu112` also CUDA 11.8 from Debian's non-free.
set -eu
flavour=$1
export DEBIAN_FRONTEND=noninteractive

packages="ca-certificates g++ python3-venv"
if [ "$flavour" = cu112 ]; then
    # nvcc 11.8 supports g++ up to 11. This also installs libcuda1, without which MXNet's GPU build cannot be imported.
    packages="$packages g++-11 nvidia-cuda-toolkit"
    # The two forms are those of debootstrap and of Debian's image.
    sed -i 's/^\(deb .* main\)$/\1 contrib non-free/' /etc/apt/sources.list 2>/dev/null || true
    sed -i 's/^\(Components: main\)$/\1 contrib non-free/' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true
fi
apt-get update -qq
# shellcheck disable=SC2086 # split into words on purpose
apt-get install -y -qq --no-install-recommends $packages
rm -rf /var/lib/apt/lists/*
