#!/bin/sh
# Install the Debian packages that this project's tests use on the host: the emulator, the tools that
# assemble a guest, the reference gfs2-utils that our programs are measured against, and the corosync and Pacemaker of the
# namespaces. Of dlm-controld only the program dlm_stonith is used. No service of theirs is started, now or at boot.
#
#   usage: tests/lab/setup.sh        (as root; idempotent, silent when there is nothing to do)
set -eu

PACKAGES="qemu-system-x86 cpio zstd xz-utils kmod util-linux fuse3
 gfs2-utils attr acl e2fsprogs xfsprogs fio tshark gdb
 corosync corosync-qdevice corosync-qnetd pacemaker pacemaker-cli-utils dlm-controld iproute2"
SERVICES="corosync corosync-qdevice corosync-qnetd pacemaker dlm"

missing=
for p in $PACKAGES; do
  dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

[ "$(id -u)" = 0 ] || { echo "setup.sh: run as root to install:$missing" >&2; exit 1; }
log=$(mktemp)
policy=/usr/sbin/policy-rc.d
[ -e "$policy" ] && policy=
trap 'rm -f "$log" ${policy:+"$policy"}' EXIT
if [ -n "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi
# A service that was here before is somebody's; one that comes now is not to be enabled.
new=
for s in $SERVICES; do
  [ -e "/lib/systemd/system/$s.service" ] || new="$new $s"
done
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
if ! { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
  cat "$log" >&2
  echo "setup.sh: could not install:$missing" >&2
  exit 1
fi
for s in $new; do
  ! command -v systemctl >/dev/null || systemctl disable --quiet "$s" 2>/dev/null || true
done
echo "setup.sh: installed$missing"
