#!/usr/bin/env bash
# Makes .venv with everything that `make run` and `make test` need. Does nothing if it is there and up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/.installed
wanted=$(cat requirements/cpu.txt pyproject.toml sdk/pyproject.toml scripts/setup.sh | sha256sum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

python=${PYTHON:-}
for name in python3.11 python3.12 python3; do
  [ -n "$python" ] && break
  if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then python=$name; fi
done
[ -n "$python" ] || { echo "setup: Python 3.11 or 3.12 is needed; install one, or set PYTHON=/path/to/it" >&2; exit 1; }

echo "setup: making .venv with $("$python" --version) (a few minutes the first time)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip --quiet --disable-pip-version-check install)
torch=$(grep -oE '^torch==[0-9.]+' requirements/cpu.txt)+cpu
# The CPU build of torch has an index of its own; ask it only if pip's own configuration does not find that build.
"${pip[@]}" --no-deps "$torch" 2>/dev/null ||
  "${pip[@]}" --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
"${pip[@]}" --no-deps setuptools wheel -r requirements/cpu.txt
"${pip[@]}" --no-deps --no-build-isolation -e sdk -e .
echo "$wanted" > "$stamp"
echo "setup: done"
