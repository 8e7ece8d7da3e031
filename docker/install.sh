#!/bin/sh
# Build stage, second step, in a checkout: install the program into /opt/crepe_dist, which is copied to the final stage.
set -eu
flavour=$1

python3 -m venv /opt/uv
/opt/uv/bin/pip install --quiet uv==0.13.9

case $flavour in
cpu)
    selected="--group horovod"
    ;;
cu112)
    selected="--group horovod-cu112 --extra gpu" # MXNet for the paper's network, the native kernels for the others
    export HOROVOD_MXNET_PACKAGE=mxnet-cu112 HOROVOD_GPU_OPERATIONS=NCCL
    export CC=gcc-11 CXX=g++-11 # supported by nvcc 11.8
    ;;
*)
    echo "usage: docker/install.sh cpu|cu112" >&2
    exit 2
    ;;
esac
# The installation is not editable, because only the environment is copied to the final stage. A cache would be discarded.
# Python files are compiled to bytecode now. The user of the image cannot write bytecode, so Python would compile the files
# at each start.
UV_PROJECT_ENVIRONMENT=/opt/crepe_dist \
    /opt/uv/bin/uv sync --quiet --no-cache --no-editable --compile-bytecode --python /usr/bin/python3 \
    --extra excel --extra parquet --extra remote --extra reports --extra serve \
    $selected
