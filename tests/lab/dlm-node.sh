#!/bin/bash
# Make this guest one node of a cluster of NODES (2), with a driver of its lock manager on port 7000.
#
#   usage: dlm-node.sh kernel|device|wire [LINE OF DLM.CONF]...
#
# "kernel" is the stock way: dlm.ko and dlm_controld, and the driver on the bare device; with "device" the driver is our
# backend on that device.  "wire" has neither: the driver itself is the daemon and the lock manager.  All run the stock
# corosync.  TOKEN (ms) is its time to notice a death.  Called again, it starts another driver where the last one ended.
kind=$1
shift
nodes=${NODES:-2}
{
  cat <<E
totem {
  version: 2
  cluster_name: lab
  transport: knet
  token: ${TOKEN:-5000}
  crypto_cipher: none
  crypto_hash: none
}
logging {
  to_logfile: yes
  logfile: /var/log/cluster/corosync.log
  to_syslog: no
}
quorum {
  provider: corosync_votequorum
  $([ "$nodes" != 2 ] || echo two_node: 1)
}
nodelist {
E
  for id in $(seq "$nodes"); do
    printf '  node {\n    nodeid: %s\n    name: n%s\n    ring0_addr: 10.77.0.%s\n  }\n' "$id" "$id" "$id"
  done
  echo "}"
} >/etc/corosync/corosync.conf
{
  echo log_debug=1
  echo post_join_delay=1
  for line; do echo "$line"; done
} >/etc/dlm/dlm.conf
cp /host/dlmdrive /host/fence-host.sh /root/
pidof corosync >/dev/null || corosync || exit 1
until corosync-quorumtool -s 2>/dev/null | grep -q 'Quorate: *Yes'; do sleep 0.2; done
if [ "$kind" != wire ]; then
  if ! pidof dlm_controld >/dev/null; then
    modprobe -a configfs dlm || exit 1
    mount -t configfs configfs /sys/kernel/config
    dlm_controld || exit 1
  fi
  until dlm_tool status >/dev/null 2>&1; do sleep 0.1; done
  # It answers before it has told the kernel who this node is.
  until grep -qsx 1 /sys/kernel/config/dlm/cluster/comms/*/local; do sleep 0.1; done
  RUST_LOG=${LOG:-info} setsid /root/dlmdrive "$kind" 0.0.0.0:7000 >/host/drive.log 2>&1 &
else
  [ ! -e /sys/kernel/config/dlm ] || exit 1
  RUST_LOG=${LOG:-info} setsid /root/dlmdrive wire 0.0.0.0:7000 /etc/dlm/dlm.conf >/host/drive.log 2>&1 &
fi
echo $! >/run/drive.pid
until /root/dlmdrive ask 127.0.0.1:7000 events >/dev/null 2>&1; do
  kill -0 "$(cat /run/drive.pid)" || { cat /host/drive.log; exit 1; }
  sleep 0.1
done
