#!/usr/bin/env bash
# Make a base image from Debian packages, where no registry of images can be reached: docker/test/base.sh NAME
set -euo pipefail

folder=$(mktemp --directory)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$folder"
rm -rf "$folder"/var/cache/apt/archives/*.deb "$folder"/var/lib/apt/lists/*
tar --create --numeric-owner --directory "$folder" . | "${DOCKER:-docker}" import - "$1"
