#!/bin/bash
# Build one guest of the lab: a stock Debian kernel and a small initramfs with a GFS2 userland.
#
#   usage: build-guest.sh 6.1|6.12 CACHE
#   gives: CACHE/guest/<kernel>/{vmlinux,initrd,version,recipe}
#
# Nothing is installed and root is not needed: Debian packages are downloaded with apt-get, kept in
# CACHE/debs and unpacked with dpkg-deb.  The result is kept until one of the files it was made from
# (RECIPE below) changes.  One build at a time per cache; the others wait for it.
#
# The kernel is unpacked to its ELF vmlinux (QEMU enters it by PVH) and neither it nor the initramfs is
# compressed: under emulation decompression costs 10 s of the 16 s such a boot would take.
set -euo pipefail
KERNEL=$1 CACHE=$2
HERE=$(cd "$(dirname "$0")" && pwd)
RECIPE=("$HERE/build-guest.sh" "$HERE/guest/init")
OUT=$CACHE/guest/$KERNEL
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C

die() { echo "build-guest.sh: $*" >&2; exit 1; }
case $KERNEL in
  6.1) META=linux-image-amd64 ;;
  6.12) META=linux-image-6.12-amd64 ;;
  *) die "no such kernel: $KERNEL (6.1 or 6.12)" ;;
esac

mkdir -p "$CACHE/debs/partial"
exec 9>"$CACHE/lock"
flock -w 900 9 || die "another build holds $CACHE/lock"
WANTED=$(cat "${RECIPE[@]}" | sha256sum | cut -d' ' -f1)
[ "$(cat "$OUT/recipe" 2>/dev/null || true)" != "$WANTED" ] || exit 0
for tool in apt-get dpkg-deb cpio depmod modprobe xz zstd; do
  command -v "$tool" >/dev/null || die "no $tool on this host; run tests/lab/setup.sh as root"
done

TMP=$(mktemp -d "$CACHE/build.XXXXXX")
trap 'rm -rf "$TMP"' EXIT
: >"$TMP/status"

# The userland, with what it depends on as apt resolves it for an empty system ...
PACKAGES="busybox-static kmod gfs2-utils e2fsprogs attr acl quota util-linux mount bash xfsprogs
 corosync dlm-controld"
# ... less what the programs copied below never run.
SKIP='^(perl|libperl|python3|libpython3|libicu|gcc-|base-files|debconf|usrmerge|adduser|passwd|media-types)'
SKIP+='|^(lsb-base|dpkg|libdb5|udev|tar$|sed$|mawk|init-system|logsave|debianutils|sysvinit|readline-common)'
SKIP+='|^(libgdbm|libldap|libsasl|libldap-common)|-perl$'
PROGRAMS="usr/sbin/mkfs.gfs2 usr/sbin/fsck.gfs2 usr/sbin/gfs2_edit usr/sbin/gfs2_grow usr/sbin/gfs2_jadd
 usr/sbin/tunegfs2 usr/bin/chattr usr/bin/lsattr usr/bin/setfattr usr/bin/getfattr usr/bin/setfacl
 usr/bin/getfacl usr/sbin/setquota usr/sbin/repquota usr/bin/fallocate usr/bin/flock usr/sbin/blkid
 usr/bin/bash usr/sbin/xfs_io usr/sbin/blockdev usr/bin/mount usr/bin/umount usr/bin/kmod
 usr/sbin/corosync usr/sbin/corosync-quorumtool usr/sbin/dlm_controld usr/sbin/dlm_tool"
MODULES="gfs2 dlm fuse loop configfs crc32c_generic virtio_pci virtio_blk virtio_net 9p 9pnet_virtio"

# Download the packages named that are not there yet.
fetch() {
  local p list=()
  for p in "$@"; do compgen -G "$CACHE/debs/${p}_*.deb" >/dev/null || list+=("$p"); done
  [ ${#list[@]} -gt 0 ] || return 0
  (cd "$CACHE/debs" && apt-get download -q "${list[@]}") >"$TMP/apt.log" 2>&1 && return 0
  cat "$TMP/apt.log" >&2
  die "could not download ${list[*]}; run tests/lab/setup.sh or apt-get update as root"
}

deb() { compgen -G "$CACHE/debs/${1}_*.deb" | sort -V | tail -n 1; }

unpack_userland() {
  local closure p d
  closure=$(apt-get -s -o Dir::State::status="$TMP/status" --no-install-recommends install $PACKAGES 2>/dev/null |
    awk '/^Inst/{print $2}' | grep -vE "$SKIP") || die "apt knows no packages; run apt-get update as root"
  # shellcheck disable=SC2086
  fetch $closure
  mkdir -p "$ROOT"/usr/{bin,sbin,lib,lib64}
  for d in bin sbin lib lib64; do ln -s "usr/$d" "$ROOT/$d"; done
  for p in $closure; do
    dpkg-deb --fsys-tarfile "$(deb "$p")" | tar -x -C "$ROOT" --keep-directory-symlink --no-same-owner
  done
}

libraries() {
  "$ROOT/lib64/ld-linux-x86-64.so.2" --library-path "$ROOT/usr/lib/x86_64-linux-gnu:$ROOT/usr/lib" \
    --list "$ROOT/$1" 2>/dev/null | awk '$2=="=>"{print $3}'
}

build_userland() {
  local b d l
  mkdir -p "$IRD"/usr/{bin,sbin,lib/x86_64-linux-gnu,lib64} "$IRD"/{dev,proc,sys,root,run,mnt,host} \
    "$IRD"/etc/{corosync,dlm} "$IRD"/var/{lib/corosync,log/cluster}
  mkdir -m 1777 "$IRD/tmp"
  for d in bin sbin lib lib64; do ln -s "usr/$d" "$IRD/$d"; done
  ln -s ../run "$IRD/var/run"
  cp "$ROOT/bin/busybox" "$IRD/bin/"
  cp -L "$ROOT/lib64/ld-linux-x86-64.so.2" "$IRD/lib64/"
  for b in $PROGRAMS; do
    [ -e "$ROOT/$b" ] || die "the Debian packages have no $b"
    cp -L "$ROOT/$b" "$IRD/$b"
    libraries "$b"
  done | sort -u >"$TMP/libraries"
  # libgcc_s: for threads that end
  echo "$ROOT/usr/lib/x86_64-linux-gnu/libgcc_s.so.1" >>"$TMP/libraries"
  while read -r l; do cp -L "$l" "$IRD/usr/lib/x86_64-linux-gnu/"; done <"$TMP/libraries"
  # what corosync opens by name; its encryption (crypto_*) is not used
  cp -rL "$ROOT/usr/lib/x86_64-linux-gnu/kronosnet" "$IRD/usr/lib/x86_64-linux-gnu/"
  rm -f "$IRD"/usr/lib/x86_64-linux-gnu/kronosnet/crypto_*.so
  for b in modprobe insmod rmmod lsmod; do ln -s ../bin/kmod "$IRD/sbin/$b"; done
  printf '%s\n' root:x:0:0:root:/root:/bin/sh u1:x:1001:1001::/:/bin/sh u2:x:1002:1002::/:/bin/sh >"$IRD/etc/passwd"
  printf '%s\n' root:x:0: g1:x:1001: g2:x:1002: >"$IRD/etc/group"
  echo 'hosts: files' >"$IRD/etc/nsswitch.conf"
  printf '%s\n' '127.0.0.1 localhost' '10.77.0.1 n1' '10.77.0.2 n2' >"$IRD/etc/hosts"
  install -m 755 "$HERE/guest/init" "$IRD/init"
}

build_modules() { # the modules named and what they need, uncompressed
  local m f to=$IRD/lib/modules/$VERSION
  mkdir -p "$to"
  cp "$KERN/lib/modules/$VERSION"/modules.{builtin,order,builtin.modinfo} "$to/"
  depmod -b "$KERN" "$VERSION"
  for m in $MODULES; do
    modprobe -d "$KERN" -S "$VERSION" --show-depends "$m" >"$TMP/deps" || die "kernel $VERSION has no module $m"
    awk '$1=="insmod"{print $2}' "$TMP/deps"
  done | sort -u >"$TMP/modules"
  while read -r f; do
    install -D -m 644 "$f" "$to/${f#*/lib/modules/"$VERSION"/}"
  done <"$TMP/modules"
  find "$to" -name '*.ko.xz' -exec xz -d {} +
  depmod -b "$IRD" "$VERSION"
}

# bzImage -> ELF.  Linux boot protocol: setup_sects at 0x1f1, payload offset and length at 0x248.
extract_vmlinux() {
  local sects off len
  sects=$(od -An -tu1 -j $((0x1f1)) -N1 "$1" | tr -d ' ')
  read -r off len < <(od -An -tu4 -j $((0x248)) -N8 "$1")
  tail -c +$((((sects ? sects : 4) + 1) * 512 + off + 1)) "$1" | head -c "$len" >"$TMP/payload" || true
  case $(od -An -tx1 -N4 "$TMP/payload" | tr -d ' ') in
    fd377a58) xz -dc "$TMP/payload" >"$2" 2>/dev/null || true ;; # 4 bytes of size trail the stream
    28b52ffd) zstd -qdc "$TMP/payload" >"$2" 2>/dev/null || true ;;
    1f8b*) gzip -dc "$TMP/payload" >"$2" 2>/dev/null || true ;;
    *) die "$1: unknown kernel compression" ;;
  esac
  [ "$(od -An -tx1 -N4 "$2" | tr -d ' ')" = 7f454c46 ] || die "$1 holds no ELF kernel"
}

IMAGE=$(apt-cache depends "$META" 2>/dev/null | awk '/Depends: linux-image-[0-9]/{print $2; exit}')
[ -n "$IMAGE" ] || die "apt knows no $META; run apt-get update as root"
VERSION=${IMAGE#linux-image-} ROOT=$TMP/root KERN=$TMP/kern IRD=$TMP/ird NEW=$TMP/out
mkdir "$ROOT" "$KERN" "$IRD" "$NEW"
fetch "$IMAGE"
unpack_userland
dpkg-deb --fsys-tarfile "$(deb "$IMAGE")" | tar -x -C "$KERN" --no-same-owner
build_userland
build_modules
extract_vmlinux "$KERN/boot/vmlinuz-$VERSION" "$NEW/vmlinux"
chmod -R go-w "$IRD/usr" "$IRD/etc"
(cd "$IRD" && find . | cpio -o -H newc -R 0:0 --quiet) >"$NEW/initrd"
echo "$VERSION" >"$NEW/version"
echo "$WANTED" >"$NEW/recipe"
rm -rf "$OUT"
mkdir -p "$(dirname "$OUT")"
mv "$NEW" "$OUT"
echo "built the $KERNEL guest ($VERSION, initramfs $(du -h "$OUT/initrd" | cut -f1))"
