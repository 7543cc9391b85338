#!/usr/bin/env bash
# Makes .venv with metanet and its development tools, at the pinned versions; does nothing twice.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v python3.11 || command -v python3)
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: metanet needs Python 3.11 or newer, found $("$python" --version)" >&2
    exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
stamp=.venv/.metanet-setup
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints-dev.txt -nt "$stamp" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-dev.txt -e '.[dev]'
    touch "$stamp"
fi
