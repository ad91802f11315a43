#!/bin/bash
# Times mkfs-gfs2 against the original mkfs.gfs2 on sparse images, in turn, and prints medians and ratios.
# Not a test: nothing here fails because a machine is slow.
#
# usage: against-original.sh [-n RUNS] [-d DIRECTORY] [-p PROGRAM] [SIZE:JOURNALS[:MEGABYTES] ...]
# The directory's filesystem must hold sparse files of the sizes (ext4: less than 16T) and the metadata of two volumes.
#
# The aim: wall <= 0.2, CPU <= 0.08, memory <= 16 MiB. Medians of 2026-11 (two processors, ext4 on a disk of 1.8 GB/s,
# other work on the machine, which makes the wall ratio better than it is alone):
#   volume     wall  CPU    volume     wall  CPU    volume     wall  CPU    memory
#   1G:1       0.16  0.07   100G:1     0.16  0.03   1T:1       0.12  0.03   9.6 MiB everywhere
#   1G:5:32    0.13  0.02   100G:5     0.10  0.02   1T:5       0.13  0.03
#                                                   16383G:5   0.07  0.04
# Alone, the fastest runs of 1G:1 are 0.18 of the original's: the disk's time for 17 MiB.
# Journals far smaller than the default on a large volume are out of reach: of 1T:1:32 (0.14, 0.17; alone about 0.37)
# nearly all is 4096 groups of 20 KiB that lie apart. There, a program that does no more than fallocate(2) for each takes
# 0.10 of the original's CPU before a byte is written, and one that then writes the same bytes by the cheapest calls
# found (direct, asynchronous, 16 a call) as much CPU and time as the whole of mkfs-gfs2.
set -euo pipefail

runs=5 dir=${TMPDIR:-/var/tmp} program=target/release/mkfs-gfs2
while getopts n:d:p: option; do
    case $option in
    n) runs=$OPTARG ;;
    d) dir=$OPTARG ;;
    p) program=$OPTARG ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || set -- 1G:1 1G:5:32 100G:1 100G:5 1T:1 1T:5 16383G:5

original=$(PATH=$PATH:/usr/sbin:/sbin command -v mkfs.gfs2)
program=$(realpath "$program")
work=$(mktemp -d "$dir/mkfs-bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
TIMEFORMAT='%3R %3U %3S'

# A fresh image of that size. Making and removing it is not timed.
image=$work/image
fresh() {
    rm -f "$image"
    truncate -s "$1" "$image"
}

# One run: wall seconds, CPU seconds.
measure() {
    local size=$1 figures
    shift
    fresh "$size"
    figures=$({ time "$@" "$image" >/dev/null 2>"$work/errors"; } 2>&1) || {
        cat "$work/errors" >&2
        return 1
    }
    echo "$figures" | awk '{ print $1, $2 + $3 }'
}

# Peak memory in KiB, in a run of its own: a program in between would cost as much time as a small volume.
peak() {
    local size=$1
    shift
    fresh "$size"
    /usr/bin/time -o "$work/peak" -f %M "$@" "$image" >/dev/null 2>"$work/errors"
    tail -n 1 "$work/peak"
}

median() {
    sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

printf '%-14s %27s %27s %15s\n' volume 'original wall cpu KiB' 'ours wall cpu KiB' 'ratio wall cpu'
for spec; do
    IFS=: read -r size journals megabytes <<<"$spec"
    args=(-O -q -p lock_nolock -j "$journals" ${megabytes:+-J "$megabytes"})
    their_peak=$(peak "$size" "$original" "${args[@]}")
    our_peak=$(peak "$size" "$program" "${args[@]}")
    : >"$work/theirs"
    : >"$work/ours"
    for ((run = 0; run < runs; run++)); do
        measure "$size" "$original" "${args[@]}" >>"$work/theirs"
        measure "$size" "$program" "${args[@]}" >>"$work/ours"
    done
    column() { cut -d' ' -f"$2" "$work/$1" | median; }
    awk -v spec="$spec" -v a="$(column theirs 1)" -v b="$(column theirs 2)" -v c="$their_peak" \
        -v d="$(column ours 1)" -v e="$(column ours 2)" -v f="$our_peak" 'BEGIN {
            printf "%-14s %9.3f %8.3f %8d %9.3f %8.3f %8d %7.2f %7.3f\n", spec, a, b, c, d, e, f, d / a, b ? e / b : 0
        }'
done
