#!/usr/bin/env bash
# Build the images: all of them, or TARGETS="interaction mlflow". Options go to `docker build`, such as
# --build-arg VARIANT=cpu. REGISTRY=registry.example/ and TAG=… change the names from vlsi/<target>:<version>.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
read -r -a targets <<< "${TARGETS:-$(sed -n 's/^FROM .* AS \(.*\)$/\1/p' docker/Dockerfile | grep -vxE 'system|base' | xargs)}"

export DOCKER_BUILDKIT=1
for target in "${targets[@]}"; do
    "${DOCKER:-docker}" build --file docker/Dockerfile --target "$target" \
        --tag "${REGISTRY:-}vlsi/$target:${TAG:-$version}" \
        --label "org.opencontainers.image.version=$version" \
        --label "org.opencontainers.image.revision=$revision" "$@" .
done
