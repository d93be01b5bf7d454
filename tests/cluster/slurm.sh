#!/bin/bash
# A Slurm of one node on this machine, for tests: slurm.sh start|stop FOLDER. As root, with Debian's slurm-wlm and munge.
# Its processes run in the foreground of their own sessions; FOLDER holds configuration, state and logs.
set -e
action=$1 folder=$2 host=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf

start() {
    mkdir -p "$folder"/{state,spool,munge} /run/munge
    chmod 700 "$folder/munge"
    dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
    chmod 400 "$folder/munge/key"
    cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=17817
SlurmdPort=17818
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=1,requeue_delay=1
ReturnToService=2
KillWait=5
MinJobAge=300
JobRequeue=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
    slurmctld
    slurmd
}

stop() {
    for pid in "$folder"/slurmd.pid "$folder"/slurmctld.pid "$folder"/munge/pid; do
        [ -e "$pid" ] && kill "$(cat "$pid")" || true
    done
}

"$action"
