#!/bin/sh
# Makes sure that the two things which pip cannot install are there: the venv module and, for the server's backend process, the
# shared library of Python. Installs them on Debian and Ubuntu where it may; says what to do everywhere else.
# Usage: system-packages.sh PYTHON
set -eu
python=$1

missing=$("$python" - <<'CODE'
import ctypes.util, importlib.util, os, sys, sysconfig

version = f"{sys.version_info.major}.{sys.version_info.minor}"
missing = []
if importlib.util.find_spec("ensurepip") is None:
    missing.append(f"python{version}-venv")
library = f"libpython{version}.so.1.0"
folders = [sysconfig.get_config_var("LIBDIR") or "", "/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"]
if not any(os.path.exists(os.path.join(folder, library)) for folder in folders) and not ctypes.util.find_library(f"python{version}"):
    missing.append(f"libpython{version}")
print(" ".join(missing))
CODE
)
[ -n "$missing" ] || exit 0

if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "Installing the system packages $missing ..."
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of packages
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    exit 0
fi
echo "Convoy needs system packages that pip cannot install: $missing" >&2
echo "On Debian or Ubuntu:  sudo apt-get install $missing" >&2
echo "Elsewhere: a Python 3.10 to 3.12 with ensurepip and a shared libpython (built with --enable-shared); then make PYTHON=/path/to/python" >&2
exit 2
