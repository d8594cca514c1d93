#!/bin/sh
# Installs torch with a virtual environment's pip: `sh deploy/install_torch.sh PYTHON [auto|cpu|cuda]`.
#
# On Linux pip takes PyTorch's CUDA build, ten times the size of the CPU build, which has an index of its own. auto looks
# there where there is no GPU, unless pip finds a wheel on disk by itself; cpu looks there always, and cuda never.
# TORCH_CPU_INDEX may name a mirror of that index.
set -eu

python=$1
build=${2:-auto}
index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

pip() {
    "$python" -m pip --disable-pip-version-check "$@"
}

has_gpu() {
    command -v nvidia-smi || command -v rocminfo || test -e /dev/nvidia0 || test -e /dev/kfd
}

on_disk() {
    pip install --quiet --dry-run --no-deps --no-index --constraint constraints.txt torch
}

answers() {
    "$python" -c 'import sys, urllib.request as web; web.urlopen(sys.argv[1] + "/torch/", timeout=5)' "$index"
}

with_index() {
    echo "torch: the CPU build from $index ($1)"
    pip install --constraint constraints.txt --extra-index-url "$index" torch
}

by_itself() {
    echo "torch: what pip finds ($1)"
    pip install --constraint constraints.txt torch
}

insist() {
    "$python" -c 'import sys, torch; sys.exit((torch.version.cuda is not None) != (sys.argv[1] == "cuda"))' "$build" || {
        echo "TORCH=$build: pip found another build, or it was installed before (then: make clean)." >&2
        exit 1
    }
}

case $build in
cuda)
    by_itself "TORCH=cuda"
    insist
    ;;
cpu)
    with_index "TORCH=cpu"
    insist
    ;;
auto)
    if [ "$(uname -s)" != Linux ]; then
        by_itself "elsewhere than on Linux that is the CPU build"
    elif has_gpu >/dev/null 2>&1; then
        by_itself "this machine has a GPU"
    elif on_disk >/dev/null 2>&1; then
        by_itself "a wheel on this machine"
    elif answers 2>/dev/null; then
        with_index "no GPU"
    else
        by_itself "no GPU, but $index does not answer"
    fi
    ;;
*)
    echo "TORCH=$build: it should be auto, cpu or cuda." >&2
    exit 2
    ;;
esac
