# Paths and pinned versions shared by the scripts; source it, do not run it.

# Everything the scripts download or generate outside the tree lives here.
TONGTU_CACHE="${TONGTU_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tongtu}"
TONGTU_VENV="$TONGTU_CACHE/venv"
TONGTU_PYTHON="$TONGTU_VENV/bin/python"
export TONGTU_CACHE

LLVM_MAJOR=22

# What the project's Python programs need; no deep-learning framework among them.
PYTHON_PACKAGES=(
    onnx==1.23.2
    onnxruntime==1.31.1
    numpy==2.4.6
    ml_dtypes==0.6.0
    pillow==13.0.0
    safetensors==0.8.0
    sympy==1.14.0
    onnx_ir==1.1.0
)

# What bench/export.py needs besides; kept in an environment of its own because of its size.
TONGTU_TORCH_VENV="$TONGTU_CACHE/venv-torch"
TORCH_PACKAGES=(
    torch==2.15.0
    torchvision==0.29.2
    timm==1.0.31
    transformers==5.23.0
    diffusers==0.42.1
    onnxscript==0.7.2
    "${PYTHON_PACKAGES[@]}"
)

# What bench/run.py needs to measure other runtimes beside ONNX Runtime.
TONGTU_PEERS_VENV="$TONGTU_CACHE/venv-peers"
PEER_PACKAGES=(
    openvino==2026.4.1
    "${PYTHON_PACKAGES[@]}"
)

say() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
