#!/usr/bin/env bash
# Build the images without an engine and without a registry: a base made by debootstrap, buildah with chroot isolation.
# Needs root on Debian or Ubuntu, and: apt-get install buildah debootstrap
#
#   images/build-chroot.sh [IMAGE ...]       all of them when none is named; tagged REGISTRY/IMAGE:VERSION
#
# The base takes the place of python:3.12-slim: Debian's smallest system with the libraries that CPython is linked to.
# It is made once; `buildah rmi localhost/bugurt-base` has it made anew. By the environment:
#   BASE             name of that base (localhost/bugurt-base); another name, another base
#   REGISTRY         first part of the images' names (localhost/bugurt)
#   SUITE, MIRROR    of Debian (bookworm, debootstrap's own)
#   PYTHON_HOME      a built CPython (as of pyenv) to be copied to /usr/local; unset: Debian's own python3
#   PIP_CONF         a pip.conf for the base, where packages come from a mirror
#   CA_BUNDLE        certificate authorities for the base, where a proxy signs by its own
#   MOUNTS           folders that the builds see at the same place, as of local wheels, separated by spaces
#   SOURCE           the repository's URL, for a label
#   TORCH_INDEX      see images/train/Dockerfile
#   CUDA             see images/generate/Dockerfile
set -euo pipefail
cd "$(dirname "$0")/.."

BASE=${BASE:-localhost/bugurt-base}
SUITE=${SUITE:-bookworm}
ALL=(scrape preprocess train generate driver s3)

for tool in buildah debootstrap; do
    command -v "$tool" >/dev/null || { echo "build-chroot: $tool is missing; apt-get install $tool" >&2; exit 69; }
done
[ "$(id -u)" = 0 ] || { echo "build-chroot: debootstrap and chroot need root" >&2; exit 77; }

make_base() {
    local root packages=ca-certificates,libbz2-1.0,libexpat1,libffi8,liblzma5,libncursesw6,libreadline8,libsqlite3-0,libuuid1,zlib1g
    root=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$root'" RETURN
    if [ -n "${PYTHON_HOME:-}" ]; then
        packages+=,openssl # brings the libssl of the suite
    else
        packages+=,python3,python3-pip,python3-venv
    fi
    debootstrap --variant=minbase --include="$packages" "$SUITE" "$root" ${MIRROR:+"$MIRROR"}
    if [ -n "${PYTHON_HOME:-}" ]; then
        # What python:slim leaves out, too: tests, the IDE, the static library, and packages but pip.
        tar -C "$PYTHON_HOME" -c --exclude=test --exclude=tests --exclude=idlelib --exclude=tkinter --exclude=turtledemo \
            --exclude='config-*' --exclude=__pycache__ --exclude='site-packages/*' --exclude=share bin include lib |
            tar -C "$root/usr/local" -x --no-same-owner
        chroot "$root" ldconfig
        local python
        python=$(find "$root/usr/local/bin" -regex '.*/python3\.[0-9]+' -printf '%f')
        find "$root/usr/local/bin" -type f ! -name "$python" -delete # scripts with the paths of where they were made
        ln -sf "$python" "$root/usr/local/bin/python3"
        ln -sf "$python" "$root/usr/local/bin/python"
        strip --strip-unneeded "$root/usr/local/bin/$python" "$root"/usr/local/lib/libpython*.so.*.* 2>/dev/null || true
        chroot "$root" /usr/local/bin/python -m ensurepip --default-pip >/dev/null
        chroot "$root" /usr/local/bin/python -m compileall -q /usr/local/lib || true # samples of bad syntax
    else
        ln -s /usr/bin/python3 "$root/usr/local/bin/python"
    fi
    if [ -n "${PIP_CONF:-}" ]; then cp "$PIP_CONF" "$root/etc/pip.conf"; fi
    if [ -n "${CA_BUNDLE:-}" ]; then cp "$CA_BUNDLE" "$root/etc/ssl/certs/ca-certificates.crt"; fi
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    local container
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$root" / >/dev/null
    buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --env LANG=C.UTF-8 \
        --cmd python "$container"
    buildah commit --quiet --rm "$container" "$BASE" >/dev/null
}

if ! buildah inspect --type image "$BASE" >/dev/null 2>&1; then
    make_base
fi

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -n 1)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
volumes=()
for folder in ${MOUNTS:-}; do volumes+=(--volume "$folder:$folder:ro"); done

for image in "${@:-${ALL[@]}}"; do
    buildah bud --isolation=chroot --layers --format=docker --pull-never \
        --build-arg "BASE=$BASE" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
        --build-arg "SOURCE=${SOURCE:-}" --build-arg "TORCH_INDEX=${TORCH_INDEX:-}" --build-arg "CUDA=${CUDA:-}" \
        "${volumes[@]}" --file "images/$image/Dockerfile" --tag "${REGISTRY:-localhost/bugurt}/$image:${version//+/-}" .
done
