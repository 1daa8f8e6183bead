#!/bin/sh
# Builds a wheel with the compiled RoIAlign in it, for Linux on this kind of processor, GPUs included.
#
#     scripts/build_wheel.sh [TENSORFLOW_VERSION ...]        default: 2.20.0 2.21.0; the wheel is put into dist/
#
# Runs in a container (docker or podman) whose C library is old enough for most distributions: manylinux_2_28. CUDA 12,
# as TensorFlow's wheel has it, is installed there: a static CUDA 13 runtime would ask for a newer driver. For each
# TensorFlow version one library, as its C++ interface changes between releases. docs/native_op.md has more.
set -eu

cd "$(dirname "$0")/.."
VERSIONS="${*:-2.20.0 2.21.0}"
MACHINE="$(uname -m)"
IMAGE="${IMAGE:-quay.io/pypa/manylinux_2_28_$MACHINE}"
CUDA="${CUDA:-12-5}"
ARCHITECTURES="${ARCHITECTURES:-sm_70 sm_75 sm_80 sm_86 sm_89 sm_90 compute_90}"
CONTAINER="${CONTAINER:-$(command -v docker || command -v podman || true)}"
if [ -z "$CONTAINER" ]; then
  echo "build_wheel.sh: needs docker or podman" >&2
  exit 1
fi

# A copy without environments and results: the container writes as another user.
SOURCE="$(mktemp -d)"
trap 'rm -rf "$SOURCE"' EXIT
git archive HEAD | tar -x -C "$SOURCE"
mkdir -p dist

"$CONTAINER" run --rm -i -v "$SOURCE:/source:z" -v "$PWD/dist:/dist:z" \
  -e VERSIONS="$VERSIONS" -e MACHINE="$MACHINE" -e CUDA="$CUDA" -e ARCHITECTURES="$ARCHITECTURES" \
  "$IMAGE" bash -eu <<'INSIDE'
case "$MACHINE" in aarch64) REPOSITORY=sbsa ;; *) REPOSITORY="$MACHINE" ;; esac
dnf -q -y install dnf-plugins-core
dnf -q config-manager --add-repo \
  "https://developer.download.nvidia.com/compute/cuda/repos/rhel8/$REPOSITORY/cuda-rhel8.repo"
# CUDA 12.5 takes GCC up to 13; the image's own may be newer
dnf -q -y install "cuda-nvcc-$CUDA" "cuda-cudart-devel-$CUDA" gcc-toolset-13
set +u
source /opt/rh/gcc-toolset-13/enable
set -u
export PATH="/usr/local/cuda-${CUDA/-/.}/bin:$PATH" CXX="$(command -v g++)" TF_CPP_MIN_LOG_LEVEL=2
PYTHON=/opt/python/cp311-cp311/bin/python

cd /source
WORK="$(mktemp -d)"
for version in $VERSIONS; do
  ENVIRONMENT="$WORK/tensorflow-$version"
  $PYTHON -m venv "$ENVIRONMENT"
  "$ENVIRONMENT/bin/pip" install --quiet "tensorflow==$version" -c requirements.lock \
    || "$ENVIRONMENT/bin/pip" install --quiet "tensorflow==$version"
  "$ENVIRONMENT/bin/pip" install --quiet .
  PYTHONPATH=/source "$ENVIRONMENT/bin/python" -m keras_seg.ops.native.build \
    --cuda --architectures $ARCHITECTURES
done
$PYTHON -m pip install --quiet build wheel
$PYTHON -m build --wheel --outdir "$WORK/wheel"
# The library needs the C library alone beside TensorFlow's own, which auditwheel would copy in; so the tag is set here.
$PYTHON -m wheel tags --remove --platform-tag "manylinux_2_28_$MACHINE" "$WORK"/wheel/*.whl
cp "$WORK"/wheel/*.whl /dist/
INSIDE
ls -l dist/*.whl
