#!/bin/sh
# Install the Debian packages that this project's tests use on the host: the emulator, the tools that
# assemble a guest, the reference gfs2-utils that our programs are measured against, and the corosync of the namespaces.
#
#   usage: tests/lab/setup.sh        (as root; idempotent, silent when there is nothing to do)
set -eu

PACKAGES="qemu-system-x86 cpio zstd xz-utils kmod util-linux fuse3
 gfs2-utils attr acl e2fsprogs fio tshark gdb
 corosync corosync-qdevice corosync-qnetd iproute2"

missing=
for p in $PACKAGES; do
  dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

[ "$(id -u)" = 0 ] || { echo "setup.sh: run as root to install:$missing" >&2; exit 1; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
if ! { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
  cat "$log" >&2
  echo "setup.sh: could not install:$missing" >&2
  exit 1
fi
echo "setup.sh: installed$missing"
