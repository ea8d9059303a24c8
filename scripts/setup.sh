#!/usr/bin/env bash
# Installs what is missing. `setup.sh build` is for building gantry, `setup.sh test` adds what its tests run,
# `setup.sh bench` adds the peers that the benchmarks run beside it, `setup.sh vm` what `cargo xtask vm` runs.
set -euo pipefail

what=${1:?usage: setup.sh build|test|bench|vm}

need() { # need COMMAND-OR-FILE PACKAGE
  case $1 in
    /*) [ -e "$1" ] || missing+=("$2") ;;
    *) command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing+=("$2") ;;
  esac
}

for tool in cargo go; do
  command -v "$tool" >/dev/null 2>&1 || {
    echo "error: $tool is not on this machine" >&2
    echo "hint: install Rust (rustup) and Go 1.25 or newer, then run this again" >&2
    exit 1
  }
done

missing=()
need cc build-essential
if [ "$what" = test ] || [ "$what" = bench ]; then
  need /bin/busybox busybox-static
  need skopeo skopeo
  need umoci umoci
  need haproxy haproxy
  need nginx nginx-light
  need wrk wrk
  need runc runc
  need crun crun
  need strace strace
fi
if [ "$what" = bench ]; then
  need etcd etcd-server
  need dockerd docker.io
fi

if [ "$what" = vm ]; then
  need /bin/busybox busybox-static
  need qemu-system-x86_64 qemu-system-x86
  need mmdebstrap mmdebstrap
  need mke2fs e2fsprogs
fi

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "error: these are missing: ${missing[*]}" >&2
    echo "hint: sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
  echo "installing ${missing[*]}" >&2
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >/dev/null
  # A package that brings a service must not start it: no docker, etcd or haproxy runs because of us.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}" >/dev/null
fi
