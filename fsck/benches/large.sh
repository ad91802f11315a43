#!/bin/bash
# Empty volumes of 1 TiB and 16 TiB (sparse files, about 2.3 GB on disk) through fsck.gfs2 of this project and that of
# gfs2-utils: wall, CPU and the most memory of each. Both only look (-n).
#
# usage: fsck/benches/large.sh FOLDER [OURS [THEIRS]]
set -euo pipefail

folder=${1:?usage: $0 FOLDER [OURS [THEIRS]]}
ours=${2:-target/release/fsck-gfs2}
theirs=${3:-fsck.gfs2}
image=$(mktemp "$folder/large.XXXXXX")
trap 'rm -f "$image"' EXIT

once() {
    local line
    line=$( { /usr/bin/time -f '%e %U %S %M' "$1" -n "$image" >/dev/null; } 2>&1 )
    awk '{ print $1, $2 + $3, $4 }' <<<"$(tail -1 <<<"$line")"
}

printf '%-7s %-7s %8s %8s %10s\n' size program 'wall s' 'CPU s' 'KiB'
# The largest file of ext4 is one block short of 16 TiB.
for size in $((1 << 40)) $(((1 << 44) - 4096)); do
    : >"$image"
    truncate -s "$size" "$image"
    mkfs.gfs2 -O -q -p lock_nolock -j 1 -J 8 "$image" >/dev/null
    name=$((size >> 40))T
    once "$ours" >/dev/null
    read -r our_wall our_cpu our_mem < <(once "$ours")
    read -r their_wall their_cpu their_mem < <(once "$theirs")
    printf '%-7s %-7s %8s %8s %10s\n' $name theirs "$their_wall" "$their_cpu" "$their_mem"
    printf '%-7s %-7s %8s %8s %10s\n' $name ours "$our_wall" "$our_cpu" "$our_mem"
    awk -v n="$name" -v a="$our_wall" -v b="$their_wall" -v c="$our_cpu" -v d="$their_cpu" -v e="$our_mem" \
        -v f="$their_mem" 'BEGIN { printf "%-7s %-7s %8.3f %8.3f %10.3f\n", n, "ratio", a / b, c / d, e / f }'
done
