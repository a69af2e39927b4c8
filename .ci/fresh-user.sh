#!/usr/bin/env bash
# Tries the project as a newcomer would: a new ordinary user, an empty environment, a fresh clone.
#
#   .ci/fresh-user.sh [demo|test …]      (as root; default: demo)
#
# The user gets the pip configuration that root's pip has here (as a site would give in /etc/pip.conf), and
# TORCH_INDEX if it is set; nothing else. The user and its home are removed at the end.
set -euo pipefail
[[ $(id -u) == 0 ]] || { echo "fresh-user.sh: makes a user, so it needs root" >&2; exit 2; }
source=$(cd "$(dirname "$0")/.." && pwd)
targets=("${@:-demo}")
user=hpcmass-fresh-$$

if ! /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null; then
    apt-get update -qq && apt-get install -y -qq python3 python3-venv >/dev/null
fi
useradd --create-home --shell /bin/bash "$user"
home=$(getent passwd "$user" | cut -d: -f6)
remove() {
    # Only this user's processes, which exist for this script alone; userdel refuses while one lives.
    local try pids
    for try in TERM TERM KILL KILL KILL; do
        pids=$(ps -o pid= -u "$user" || true)
        [[ -n $pids ]] || break
        kill -s "$try" $pids 2>/dev/null || true
        sleep 1
    done
    userdel --remove "$user" 2>/dev/null || echo "fresh-user.sh: could not remove the user $user" >&2
}
trap remove EXIT

git -C "$source" bundle create --quiet "$home/hpcmass.bundle" HEAD
mkdir -p "$home/.config/pip"
{
    echo "[global]"
    for key in find-links extra-index-url index-url; do
        value=$(python3 -m pip config get "global.$key" 2>/dev/null || true)
        [[ -z $value ]] || printf '%s = %s\n' "$key" "$value"
    done
} >"$home/.config/pip/pip.conf"
chown -R "$user:" "$home"

as_user() {
    runuser -u "$user" -- env -i HOME="$home" PATH=/usr/bin:/bin ${TORCH_INDEX:+TORCH_INDEX="$TORCH_INDEX"} "$@"
}
cd "$home"
as_user git -c advice.detachedHead=false clone -q "$home/hpcmass.bundle" hpcmass
cd hpcmass
for target in "${targets[@]}"; do
    started=$SECONDS
    printf '\n=== make %s, as %s with an empty environment\n' "$target" "$user"
    as_user make "$target" </dev/null || { printf '=== make %s FAILED after %d s\n' "$target" $((SECONDS - started)); exit 1; }
    printf '=== make %s: %d s\n' "$target" $((SECONDS - started))
done
