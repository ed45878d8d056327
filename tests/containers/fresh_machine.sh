#!/bin/bash
# A fresh machine, tried: runs inside a bare Debian container, as root, with the repository mounted read-only at /source.
#
# Installs Python, venv, make and git where they are missing, and nothing else; then, as an ordinary user, clones the repository and
# runs 'make demo' and 'make test'. Where a command fails and says that this machine lacks something, and which Debian packages
# have it ("lacks …: … apt install …"), these are installed, and the command is tried again. The last lines say what was needed:
#
#   installed at first: make git
#   named by 'make demo' and installed: libcurl4
#   passed: make demo
#   passed: make test ARGS=…
#
# TEST_ARGS: arguments for 'make test', as make's ARGS; by default none, so that all of it runs.
set -euo pipefail
user=someone
home=/home/$user
report=()

install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/tmp/apt.log 2>&1 || { cat /tmp/apt.log; exit 1; }; }
as_user() { (cd "$home/project" && setpriv --reuid "$user" --regid "$user" --init-groups env HOME="$home" USER="$user" "$@"); }

apt-get update -qq
missing=()
for program in python3 make git; do command -v $program >/dev/null || missing+=($program); done
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
[ ${#missing[@]} -eq 0 ] || install "${missing[@]}"
report+=("installed at first: ${missing[*]:-nothing}")

useradd --create-home $user
git config --system --add safe.directory '*'
git clone -q file:///source "$home/project"
chown -R $user: "$home/project"

try() { # command...
    local tries=0 wanted
    until as_user "$@" 2>&1 | tee /tmp/said; do
        wanted=$(sed -nE 's/.*this machine lacks .*(apt install [a-z0-9 .+-]+).*/\1/p' /tmp/said | tail -n 1 | cut -d ' ' -f 3- || true)
        tries=$((tries + 1))
        if [ -z "$wanted" ] || [ $tries -gt 3 ]; then
            printf '%s\n' "${report[@]}" "FAILED: $*"
            exit 1
        fi
        # shellcheck disable=SC2086
        install $wanted
        report+=("named by '${*:1:2}' and installed: $wanted")
    done
    report+=("passed: $*")
}

try make demo
try make test ARGS="${TEST_ARGS:-}"
left=$(pgrep -u $user -a || true)
[ -z "$left" ] || report+=("still running: $left")
printf '%s\n' "${report[@]}"
[ -z "$left" ]
