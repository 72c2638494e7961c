#!/usr/bin/env bash
# Install the pinned packages and this project into .venv in the repository. Running it again is safe.
# Needs bash and Python 3.11, 3.12 or 3.13; PYTHON=... chooses which.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/.requirements
# The folder too, since .venv imports the packages of the folder in which it was set up.
state=$(pwd -P && cat requirements.txt)
if [ -x .venv/bin/python ] && [ "$state" = "$(cat "$stamp" 2> /dev/null)" ]; then
  exit 0
fi

supported='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
candidates=(python3 python3.13 python3.12 python3.11)
[ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
for python in "${candidates[@]}"; do
  if "$python" -c "$supported" 2>/dev/null; then
    found=$python
    break
  fi
done
if [ -z "${found:-}" ]; then
  echo "error: no Python 3.11, 3.12 or 3.13 found: install one, or name it with PYTHON=..." >&2
  exit 1
fi

start=$SECONDS
# Without the system's venv package, "python -m venv" fails but leaves a folder without pip.
if [ ! -x .venv/bin/python ] || ! { command -v uv || .venv/bin/python -m pip --version; } > /dev/null 2>&1; then
  "$found" -m venv --clear .venv
fi
echo "Setting up .venv with $(.venv/bin/python --version): about 6 GB on disk, nothing to compile."
if uv=$(command -v uv); then :; else
  .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
  uv=.venv/bin/uv
fi
# Compile bytecode here, not when a run starts: imports then take a third of the time.
"$uv" pip install --quiet --python .venv/bin/python --compile-bytecode --no-deps -r requirements.txt
"$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
echo "$state" > "$stamp"
echo "Set up in $((SECONDS - start)) s."
