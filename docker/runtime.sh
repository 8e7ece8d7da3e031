#!/bin/sh
# Final stage: what runs the program, without a compiler, and the user that it runs as.
set -eu
export DEBIAN_FRONTEND=noninteractive

apt-get update -qq
# libgomp1: MXNet's and our kernels' threads. zlib1g: cuDNN.
apt-get install -y -qq --no-install-recommends ca-certificates libgomp1 libstdc++6 python3 zlib1g
rm -rf /var/lib/apt/lists/*
useradd --uid 1000 --create-home crepe
# Commands read and write data/ and runs/ of the folder where they are typed.
install -d -o crepe -g crepe /work /work/data /work/runs
