#!/bin/sh
# Final stage: install what the program needs to run, without a compiler, and create its user.
set -eu
export DEBIAN_FRONTEND=noninteractive

apt-get update -qq
# libgomp1, libquadmath0: MXNet. python3-distutils: horovodrun. zlib1g: cuDNN.
apt-get install -y -qq --no-install-recommends ca-certificates libgomp1 libquadmath0 libstdc++6 python3 python3-distutils zlib1g
rm -rf /var/lib/apt/lists/*
useradd --uid 1000 --create-home crepe
# Commands read and write data/ and runs/ in the current folder.
install -d -o crepe -g crepe /training /training/data /training/runs
