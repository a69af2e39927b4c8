#!/usr/bin/env bash
# Builds an image of this hpcmass with Apptainer and prints its path.
#
#   containers/build.sh cpu|cuda|rocm [IMAGE.sif]     default: containers/hpcmass-KIND.sif
#
# The CPU image needs a mirror of Debian (the one that apt uses here, or DEBIAN_MIRROR) and debootstrap; the other
# two begin with a vendor's image. Packages come as wheels, fetched outside with pip's own configuration;
# TORCH_INDEX names the index to take torch from (without it, PyPI's torch may be the CUDA build: 3 GB).
# CPU images are kept by content in ${XDG_CACHE_HOME:-~/.cache}/hpcmass/images: where only hpcmass itself has
# changed, the kept image is taken and hpcmass in it replaced, which takes a third of the time.
# Ends with 3, and says why, where there is no Apptainer.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
kind=${1:?which image: cpu, cuda or rocm}
out=${2:-$here/hpcmass-$kind.sif}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/hpcmass/images
[[ -f $here/hpcmass-$kind.def ]] || { echo "build.sh: there is no $here/hpcmass-$kind.def" >&2; exit 2; }
python=$root/.venv/bin/python
[[ -x $python ]] || python=python3

say() { printf '== container: %s\n' "$*" >&2; }
digest() { sha256sum | cut -c1-16; }

apptainer=$("$python" "$here/get_apptainer.py") || exit $?
scratch=$(mktemp -d -p "${TMPDIR:-/var/tmp}" hpcmass-image-XXXXXX)
trap 'chmod -R u+rwX "$scratch" 2>/dev/null; rm -rf "$scratch"' EXIT
mkdir -p "$scratch/wheels" "$scratch/source" "$scratch/tmp" "$cache"
# Apptainer's own work folders: /tmp may be small, or memory.
export APPTAINER_TMPDIR=$scratch/tmp APPTAINER_CACHEDIR=$scratch/cache
unset APPTAINER_NO_PRIVS SINGULARITY_NO_PRIVS

# Root without all capabilities (in a container, say) builds as an ordinary user does, in a user namespace.
fakeroot=()
if [[ $(id -u) == 0 ]] && (((0x$(awk '/^CapEff/{print $2}' /proc/self/status) >> 24 & 1) == 0)); then
    fakeroot=(--fakeroot)
    for file in /etc/subuid /etc/subgid; do
        grep -q '^root:' "$file" 2>/dev/null || { say "root gets a range in $file"; echo root:100000:65536 >>"$file"; }
    done
fi

# The strongest compression of squashfs takes two minutes of two cores, and saves a tenth of the size.
fast=(--mksquashfs-args "-comp gzip -Xcompression-level 1")

# apptainer build OUT DEF [NAME=VALUE…]: beside its place first, so that nobody finds half an image.
build() {
    local image=$1 def=$2 arguments=() each
    shift 2
    for each; do arguments+=(--build-arg "$each"); done
    "$apptainer" --quiet build "${fakeroot[@]}" --force "${fast[@]}" "${arguments[@]}" "$scratch/image.sif" "$def" \
        >"$scratch/log" 2>&1 </dev/null || { tail -n 40 "$scratch/log" >&2; say "the build failed"; exit 1; }
    mv "$scratch/image.sif" "$image.$$" && mv "$image.$$" "$image"
}

wheel_of_hpcmass() {
    cp -r "$root/hpcmass" "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$scratch/source/"
    find "$scratch/source" -name __pycache__ -prune -exec rm -rf {} +
    "$python" -m pip wheel --quiet --no-deps -w "$scratch/wheels" "$scratch/source" >&2
}

# Wheels for the image's Python (Debian 12's 3.11), whatever runs here.
wheelhouse() {
    local machine
    machine=$(uname -m)
    local pip=("$python" -m pip download -qq --only-binary=:all: --python-version 3.11 --implementation cp
        --abi cp311 --abi abi3 --abi none --platform "manylinux_2_36_$machine" --platform "manylinux_2_28_$machine"
        --platform "manylinux_2_17_$machine" --platform "manylinux2014_$machine" --platform "linux_$machine"
        --platform any -c "$root/constraints.txt" --find-links "$scratch/wheels" -d "$scratch/wheels")
    if [[ -n ${TORCH_INDEX:-} ]]; then "${pip[@]}" --no-deps --index-url "$TORCH_INDEX" torch >&2; fi
    "${pip[@]}" "hpcmass[$mpi,sklearn]" >&2
}

if [[ $kind != cpu ]]; then
    wheel_of_hpcmass
    build "$out" "$here/hpcmass-$kind.def" WHEELS="$scratch/wheels" CONSTRAINTS="$root/constraints.txt"
    say "$out"
    echo "$out"
    exit 0
fi

# Horovod as .ci/build_horovod.py has built and kept it for the same Python and torch.
torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$root/constraints.txt")
horovod=$(ls "${cache%/images}"/wheels/*cp311-*-torch"$torch"*/horovod-*-cp311-*.whl \
    "${cache%/images}"/wheels/*cpython-311-*-torch"$torch"*/horovod-*-cp311-*.whl 2>/dev/null | tail -n1 || true)
mpi=mpi
[[ -z $horovod ]] || mpi=horovod

base=$(cat "$here/hpcmass-cpu.def" "$here/build.sh" "$root/constraints.txt" \
    <(sed -n '/^dependencies/,/^\[project.scripts\]/p' "$root/pyproject.toml"; echo "$(uname -m) ${TORCH_INDEX:-} $horovod") | digest)
source=$(cd "$root" && find hpcmass -name '*.py' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum |
    cat - "$here/hpcmass-update.def" | digest)
image=$cache/cpu-$base-$source.sif
started=$SECONDS
if [[ ! -f $image ]]; then
    wheel_of_hpcmass
    older=$(ls -t "$cache/cpu-$base-"*.sif 2>/dev/null | head -n1 || true)
    if [[ -n $older ]]; then
        say "another hpcmass into $older"
        build "$image" "$here/hpcmass-update.def" FROM="$older" WHEELS="$scratch/wheels"
    else
        if ! command -v debootstrap >/dev/null && [[ ${APT:-} != no && $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
            apt-get install -y -qq --no-install-recommends debootstrap >/dev/null 2>&1 ||
                { apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap >/dev/null; } || true
        fi
        for tool in debootstrap mksquashfs; do
            command -v "$tool" >/dev/null || [[ -x /usr/sbin/$tool ]] || { say "there is no $tool here"; exit 3; }
        done
        mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 2>/dev/null |
            awk '$1 == "Debian" && $2 == "Debian" { print $3; exit }')}
        [[ -n $mirror ]] || { say "apt knows no mirror of Debian here; name one: DEBIAN_MIRROR=ADDRESS"; exit 3; }
        say "building (some minutes)"
        [[ -z $horovod ]] || cp "$horovod" "$scratch/wheels/"
        wheelhouse
        PATH=$PATH:/usr/sbin:/sbin build "$image" "$here/hpcmass-cpu.def" MIRROR="$mirror" WHEELS="$scratch/wheels" MPI="$mpi"
    fi
    say "built in $((SECONDS - started)) s"
fi
touch "$image"
# Three are enough: today's, and what runs may still be using.
ls -t "$cache"/cpu-*.sif | tail -n +4 | xargs -r -d '\n' rm -f
ln -sfn "$image" "$out"
echo "$out"
