#!/usr/bin/env bash
# Install a package, and the versions that uv.lock pins, into an environment. Packages that are there already stay.
# Usage: tools/install.sh PYTHON PACKAGE [OPTION OF 'uv export']...
#   tools/install.sh .venv/bin/python --editable=. --group test
# docs/how-to/install.md is about indexes and builds of torch.
set -euo pipefail
python=$1 package=$2
shift 2

# The uv on the PATH, if pyproject.toml's required-version accepts it; else one from PyPI, beside Python.
uv=$(dirname "$python")/uv
if uv cache dir >/dev/null 2>&1; then
    uv=uv
elif [ ! -x "$uv" ]; then
    "$python" -m pip install --quiet uv
fi

# uv doesn't read pip's settings: without settings of its own, it gets pip's.
pip_settings=$("$python" -m pip config list)
pip_setting() {
    local section
    for section in :env: install global; do # the first one wins in pip, too
        sed -nE "s/^$section\.$1='(.*)'$/\1/p" <<<"$pip_settings" | sed 's/\\n/ /g'
    done | sed -n 1p
}
use_pip_setting() { # VARIABLE NAME
    local value
    value=$(pip_setting "$2")
    [ -z "$value" ] || [ -n "${!1:-}" ] || export "$1=$value"
}
configured=$(compgen -e UV_ | grep -E '^UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS)$' || true)
if [ -z "$configured" ] && [ ! -e "${UV_CONFIG_FILE:-${XDG_CONFIG_HOME:-$HOME/.config}/uv/uv.toml}" ] && [ ! -e /etc/uv/uv.toml ]; then
    use_pip_setting UV_DEFAULT_INDEX index-url
    use_pip_setting UV_INDEX extra-index-url
    use_pip_setting UV_FIND_LINKS find-links
    use_pip_setting UV_INSECURE_HOST trusted-host
    use_pip_setting SSL_CERT_FILE cert
    # uv wants commas between them.
    [ -z "${UV_FIND_LINKS:-}" ] || export UV_FIND_LINKS="${UV_FIND_LINKS// /,}"
    # As pip does: any index may have a version. Hashes decide what is taken.
    export UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match}
fi

quiet=$([ -t 2 ] || echo --quiet)
locked=$(mktemp)
trap 'rm -f "$locked"' EXIT
# Without torch and the CUDA packages that its build from PyPI needs: the index decides which build is installed.
mapfile -t builds < <(sed -nE 's/^name = "(torch|triton|cuda-.*|nvidia-.*)"$/--no-emit-package=\1/p' uv.lock)
"$uv" export --quiet --frozen --python "$python" --no-emit-project "${builds[@]}" --output-file "$locked" "$@"
"$uv" pip install $quiet --python "$python" --no-deps --requirements "$locked"
# Brings torch, in the version that pyproject.toml names, with whatever that build depends on.
"$uv" pip install $quiet --python "$python" "$package"
