#!/usr/bin/env bash
# All that there is to measure on one GPU, in under 10 minutes:
#
#     bench/h100.sh [--dry-run]
#
# Needs python 3.12, a C++ compiler, torch 2.11, triton 3.6, numpy, safetensors, rich, pytest and setuptools. Installs
# nothing and fetches nothing: the extensions are built in place, and the package is imported from links in a temporary
# folder. What is missing beside that is named. --dry-run runs every case, tiny, on a CPU. PYTHON=... picks an interpreter.
# Results go to bench/results/kernels.csv and slice.csv; what failed comes last. Exit status 1 where something did.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
dry_run=false
case "${1:-}" in
    --dry-run) dry_run=true ;;
    "") ;;
    *) echo "usage: bench/h100.sh [--dry-run]" >&2; exit 2 ;;
esac
started=$SECONDS
failed=()

$PYTHON - <<'END' || exit 1
import importlib.util as find, sys
print("python", sys.version.split()[0])
missing = [name for name in ("torch", "triton", "numpy", "safetensors", "rich", "pytest", "setuptools") if not find.find_spec(name)]
for name, what in {
    "msgspec": "commands, and the slice with the recipe's policy", "tokenizers": "preparing data", "jinja2": "chat templates",
    "liger_kernel": "a peer", "flashoptim": "a peer", "ninja": "faster builds",
}.items():
    if not find.find_spec(name):
        print(f"{name} is not installed ({what}): left out")
if missing:
    sys.exit(f"not installed, and needed: {', '.join(missing)}")
END

if ! $dry_run && ! $PYTHON -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no CUDA device: bench/h100.sh --dry-run runs on a CPU" >&2
    exit 1
fi

# A step that hangs must not take the others' time.
step() {
    local seconds=$1 name=$2
    shift 2
    echo
    echo "== $name"
    timeout "$seconds" "$@"
    local status=$?
    if [ $status -ne 0 ]; then
        failed+=("$name: $([ $status -eq 124 ] && echo "more than $seconds s" || echo "exit status $status")")
    fi
}

step 70 "build" "$PYTHON" setup.py -q build_ext --inplace

# setup.py maps kernels/ to skytrain.kernels. Without an installation links do: the root on sys.path would not, and would
# shadow another package called kernels.
links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
mkdir "$links/skytrain"
ln -s "$PWD"/skytrain/* "$links/skytrain/"
ln -s "$PWD/kernels" "$links/skytrain/kernels"
export PYTHONPATH="$links${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONDONTWRITEBYTECODE=1

if $dry_run; then
    export CUDA_VISIBLE_DEVICES=
    TRITON_INTERPRET=1 step 300 "kernels are right" "$PYTHON" -P -m pytest -q tests/kernels -k "opcheck or backend"
    step 300 "traffic" "$PYTHON" bench/traffic.py --small
    step 300 "microbenchmarks" "$PYTHON" bench/microbench.py --small --seconds 0.1
    step 300 "the slice" "$PYTHON" bench/slice.py --small --seconds 0.1
else
    unset TRITON_INTERPRET
    nvidia-smi --query-gpu=name,driver_version,clocks.sm,power.limit --format=csv,noheader
    # Most of the time goes into compiling: several processes, where pytest can have them.
    processes=()
    $PYTHON -c 'import xdist' 2>/dev/null && processes=(-n 8 --dist loadfile)
    step 170 "kernels are right" "$PYTHON" -P -m pytest -q "${processes[@]}" tests/kernels
    step 120 "the slice" "$PYTHON" bench/slice.py
    step 230 "microbenchmarks" "$PYTHON" bench/microbench.py --seconds 2
fi

echo
echo "$((SECONDS - started)) s"
for what in "${failed[@]}"; do
    echo "failed: $what"
done
[ ${#failed[@]} -eq 0 ]
