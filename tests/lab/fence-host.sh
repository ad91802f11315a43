#!/bin/sh
# A fence agent that really cuts: the host is asked, through the share, to kill the node's emulator, and says when it has.
node=
while read -r line; do
  case $line in node=*) node=${line#*=} ;; esac
done
[ -n "$node" ] || exit 1
echo "$node" >"/host/.lab/fence.$node.tmp"
mv "/host/.lab/fence.$node.tmp" "/host/.lab/fence.$node.req"
i=0
while [ $i -lt 600 ]; do
  [ ! -e "/host/.lab/fence.$node.ok" ] || { rm "/host/.lab/fence.$node.ok"; exit 0; }
  sleep 0.2
  i=$((i + 1))
done
exit 1
