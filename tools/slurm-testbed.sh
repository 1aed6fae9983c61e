#!/bin/bash
# A real one-node SLURM from Debian's packages, for trying the job templates without a centre.
#
#   tools/slurm-testbed.sh up       install what is missing, start it, wait until the node is idle
#   tools/slurm-testbed.sh status   show node and queue; exit status 0 if a job could run
#   tools/slurm-testbed.sh down     cancel its jobs, stop it, remove its folder
#
# Needs root and a Debian or Ubuntu machine. Everything it writes lies in one folder
# ($DECDPO_SLURM_DIR, default /var/lib/decdpo-slurm); the only other trace is the link
# /etc/slurm/slurm.conf, by which sbatch, srun and sinfo find it. It refuses to touch a machine
# that already has a SLURM of its own.
set -euo pipefail

ROOT="$(realpath -m "${DECDPO_SLURM_DIR:-/var/lib/decdpo-slurm}")"
CONF="$ROOT/slurm.conf"
LOCK="$ROOT/slurm-testbed.lock"
LINK=/etc/slurm/slurm.conf
PACKAGES=(slurmctld slurmd slurm-client munge libpmix2 libpmix-dev)

say() { echo "slurm-testbed: $*"; }

die() {
    echo "slurm-testbed: $1" >&2
    [ -z "${2:-}" ] || echo "  remedy: $2" >&2
    exit 2
}

need_root() {
    [ "$(id -u)" -eq 0 ] || die "'$1' needs root (this is user $(id -un))" \
        "run it with sudo, or skip the SLURM tests: they say why when there is no SLURM"
}

# Wait for an 'up' or 'down' at work elsewhere; the lock also marks the folder as this script's.
take_lock() {
    exec 9>"$LOCK"
    flock -w 600 9 || die "another 'up' or 'down' has held $LOCK for 10 minutes"
}

# The daemon whose pid file is given, if it runs: a stale file never leads to a stranger's process.
alive() { # name
    local pid
    pid="$(cat "$ROOT/$1.pid" 2>/dev/null)" || return 1
    [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ]
}

refuse_foreign_slurm() {
    if [ -n "${SLURM_CONF:-}" ] && [ "$(readlink -f "$SLURM_CONF")" != "$(readlink -f "$CONF")" ]; then
        die "SLURM_CONF points to another SLURM: $SLURM_CONF" "use that one, or unset SLURM_CONF"
    fi
    if [ -e "$LINK" ] && [ "$(readlink "$LINK")" != "$CONF" ]; then
        die "this machine has a SLURM of its own: $LINK" "submit jobs/train.slurm to that one"
    fi
    local name pid parent ours
    for name in slurmctld slurmd; do
        ours="$(cat "$ROOT/$name.pid" 2>/dev/null || echo none)"
        while read -r pid parent; do # slurmctld has a helper process of the same name
            [ "$pid" = "$ours" ] || [ "$parent" = "$ours" ] \
                || die "a $name that is not the test bed's is running (process $pid)" \
                    "submit jobs/train.slurm to that SLURM"
        done < <(ps -C "$name" -o pid=,ppid= 2>/dev/null || true)
    done
}

installed() {
    command -v slurmctld && command -v slurmd && command -v sinfo && command -v munged \
        && dpkg-query -W -f '${Status}\n' libpmix-dev | grep -q '^install ok'
} >/dev/null 2>&1

install_packages() {
    installed && return
    command -v apt-get >/dev/null || die "SLURM is not installed, and there is no apt-get" \
        "install slurmctld, slurmd, munge and PMIx with this system's package manager"
    say "installing ${PACKAGES[*]}"
    local log="$ROOT/apt.log"
    apt() {
        DEBIAN_FRONTEND=noninteractive timeout 600 \
            apt-get -o DPkg::Lock::Timeout=300 "$@" </dev/null >>"$log" 2>&1
    }
    apt install -y --no-install-recommends "${PACKAGES[@]}" \
        || { apt update && apt install -y --no-install-recommends "${PACKAGES[@]}"; } \
        || { tail -n 5 "$log" >&2; die "apt-get could not install SLURM (all of it: $log)" \
            "give this machine a package mirror; Debian 12 or newer has the packages"; }
}

write_configuration() {
    local host cpus memory
    host="$(hostname -s)"
    cpus="$(nproc)"
    # Eight CPUs at least, so that eight ranks can be tried on a small machine: the node then is
    # oversubscribed, which is slow and otherwise harmless.
    [ "$cpus" -ge 8 ] || cpus=8
    memory="$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)"
    mkdir -p "$ROOT/state" "$ROOT/spool" "$(dirname "$LINK")"
    cat >"$CONF" <<CONFIGURATION
ClusterName=decdpo
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
# A requeued job waits for cred_expire seconds (120 by default) before it starts again.
AuthInfo=socket=$ROOT/munge.socket,cred_expire=5
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool
SlurmctldPidFile=$ROOT/slurmctld.pid
SlurmdPidFile=$ROOT/slurmd.pid
SlurmctldLogFile=$ROOT/slurmctld.log
SlurmdLogFile=$ROOT/slurmd.log
MpiDefault=pmix
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=$ROOT/jobs.log
KillWait=10
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=1-00:00:00 State=UP
CONFIGURATION
    ln -sfn "$CONF" "$LINK"
}

start() { # name command...
    local name="$1"
    shift
    alive "$name" && return
    rm -f "$ROOT/$name.pid"
    # Descriptor 9 is the lock of this script: a daemon must not keep it.
    (cd / && timeout 30 "$@" </dev/null >>"$ROOT/$name.out" 2>&1 9>&-) \
        || { tail -n 5 "$ROOT/$name.out" >&2; die "$name did not start" "see $ROOT/$name.log"; }
}

idle() { [ -n "$(timeout 10 sinfo -h -t idle,mixed,allocated -o %n 2>/dev/null)" ]; }

up() {
    need_root up
    # 'down' removes the whole folder: it must hold nothing else.
    [ -e "$LOCK" ] || [ -z "$(ls -A "$ROOT" 2>/dev/null)" ] \
        || die "$ROOT is in use for something else" \
            "name a new or empty folder with DECDPO_SLURM_DIR"
    refuse_foreign_slurm
    mkdir -p "$ROOT"
    take_lock
    chmod 755 "$ROOT"
    if alive munged && alive slurmctld && alive slurmd && idle; then
        say "already up: $(sinfo -h -o '%n, %c CPUs, %T')"
        return
    fi
    install_packages
    write_configuration
    if [ ! -s "$ROOT/munge.key" ]; then
        (umask 077 && head -c 1024 /dev/urandom >"$ROOT/munge.key")
    fi
    start munged munged --key-file="$ROOT/munge.key" --socket="$ROOT/munge.socket" \
        --pid-file="$ROOT/munged.pid" --log-file="$ROOT/munged.log" \
        --seed-file="$ROOT/munged.seed" --num-threads=2
    start slurmctld slurmctld -f "$CONF"
    start slurmd slurmd -f "$CONF" -N "$(hostname -s)"
    local second
    for ((second = 0; second < 60; second++)); do
        if idle; then
            say "up after $SECONDS s: $(sinfo -h -o '%n, %c CPUs, %T')"
            return
        fi
        sleep 1
    done
    tail -n 5 "$ROOT/slurmctld.log" "$ROOT/slurmd.log" >&2
    die "the node is not idle after 60 s" "read the logs in $ROOT"
}

stop() { # name
    local second pid
    alive "$1" || return 0
    pid="$(cat "$ROOT/$1.pid")"
    kill "$pid" 2>/dev/null || true
    for ((second = 0; second < 100; second++)); do
        [ -d "/proc/$pid" ] || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
}

down() {
    need_root down
    [ -d "$ROOT" ] || { say "is not up"; return; }
    [ -e "$LOCK" ] || die "$ROOT is not a folder of this script" \
        "unset DECDPO_SLURM_DIR, or remove the folder yourself"
    take_lock
    if alive slurmctld; then
        local job second
        for job in $(timeout 10 squeue -h -o %A 2>/dev/null); do
            timeout 10 scancel "$job" 2>/dev/null || true
        done
        for ((second = 0; second < 30; second++)); do # longer than KillWait
            [ -n "$(timeout 10 squeue -h 2>/dev/null)" ] || break
            sleep 1
        done
    fi
    stop slurmd
    stop slurmctld
    stop munged
    [ "$(readlink "$LINK" 2>/dev/null)" != "$CONF" ] || rm -f "$LINK"
    rm -rf "$ROOT"
    say "down"
}

status() {
    if [ ! -e "$CONF" ] || ! command -v sinfo >/dev/null; then
        say "is not up"
        return 3
    fi
    local name
    for name in munged slurmctld slurmd; do
        alive "$name" || { say "$name is not running"; return 3; }
    done
    { timeout 10 sinfo && timeout 10 squeue; } || return 3
    idle
}

case "${1:-}" in
    up | down | status) [ $# -eq 1 ] || die "too many arguments: $*" "name one of: up, down, status"; "$1" ;;
    *) die "unknown command '${1:-}'" "name one of: up, down, status" ;;
esac
