# shellcheck shell=bash
# What every job script shares: environment, launch, and the chain of starts of one run.
# Source it after `trap 'DECDPO_STOP=1' USR1` on the script's first line.
#
#   DECDPO_HOME         the repository (default: where the job was submitted)
#   DECDPO_VENV         the virtual environment (default: .venv there; otherwise what is on PATH)
#   DECDPO_LAUNCH       srun (default) or mpirun
#   DECDPO_LAUNCH_ARGS  more options for it, separated by blanks
#   DECDPO_MAX_LOST     starts in a row that may be lost before any progress (default 3)
#   DECDPO_MAX_STARTS   starts of one run, however well they go (default 200)
#   DECDPO_NEXT         requeue (default), or chain: a second job waits for the end of this one
#   DECDPO_GRACE        seconds until a stop is passed on, and until it is repeated (default 5)
#   DECDPO_LINGER       seconds between two looks whether a run that may lose agents is over, and only
#                       mpirun still waits (default 60)

DECDPO_STOP="${DECDPO_STOP:-}"
DECDPO_HOME="${DECDPO_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}"

decdpo_say() { echo "$(date '+%F %T') job ${SLURM_JOB_ID:-?}.${SLURM_RESTART_COUNT:-0}: $*"; }

decdpo_fail() { # what remedy
    decdpo_say "error: $1" >&2
    echo "  remedy: $2" >&2
    exit 2
}

# Put decdpo on PATH.
decdpo_path() {
    local environment="${DECDPO_VENV:-$DECDPO_HOME/.venv}"
    if [ -d "$environment/bin" ]; then
        export PATH="$environment/bin:$PATH"
    elif [ -n "${DECDPO_VENV:-}" ]; then
        decdpo_fail "DECDPO_VENV=$DECDPO_VENV has no bin folder" "name a virtual environment"
    fi
    command -v decdpo >/dev/null || decdpo_fail "decdpo is not on PATH, nor in $environment" \
        "make the environment on a login node (bash tools/setup.sh), or set DECDPO_VENV"
}

# The same in a job, and give each rank the CPUs that SLURM reserved for it.
decdpo_environment() {
    [ -n "${SLURM_JOB_ID:-}" ] || decdpo_fail "this is a job script, and there is no SLURM job" \
        "submit it with sbatch, or run 'mpirun -n 4 decdpo train CONFIG --out RUN' here"
    decdpo_path
    export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
    # Where sbatch was told to export nothing (SBATCH_EXPORT=NONE), srun would do the same, and its
    # tasks would not find what was just put on PATH.
    export SLURM_EXPORT_ENV=ALL
    # Since SLURM 22.05 srun no longer takes this over from sbatch.
    export SRUN_CPUS_PER_TASK="$OMP_NUM_THREADS"
    decdpo_job_end
}

# Tell the ranks when the job ends, where SLURM does not: they save in time for it if asked to.
decdpo_job_end() {
    [ -z "${SLURM_JOB_END_TIME:-}" ] || return 0
    local end
    end="$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null \
        | grep -o ' EndTime=[0-9][0-9T:-]*' | tail -n 1)" || return 0
    end="$(date -d "${end#*=}" +%s 2>/dev/null)" || return 0
    export SLURM_JOB_END_TIME="$end"
}

# What a rank gets, one line each: threads, binding, GPUs. The start of a run says what it found of
# this on every node, and warns where ranks share cores or leave them idle.
decdpo_resources() {
    decdpo_say "threads: $OMP_NUM_THREADS a rank, ${SLURM_NTASKS:-1} ranks," \
        "${SLURM_JOB_CPUS_PER_NODE:-?} CPUs a node"
    if [ "${DECDPO_LAUNCH:-srun}" = mpirun ]; then
        decdpo_say "binding: none, by mpirun; DECDPO_LAUNCH_ARGS='--bind-to core' binds to cores"
    else
        decdpo_say "binding: ${SLURM_CPU_BIND:-as srun does here};" \
            "DECDPO_LAUNCH_ARGS=--cpu-bind=cores binds to cores"
    fi
    decdpo_say "GPUs: ${SLURM_GPUS_ON_NODE:-0} a node"
}

# Make a decdpo that runs in a container, beside the run, and name it as the environment.
decdpo_container() { # RUN
    local box="${DECDPO_BOX:-apptainer}" folder="$PWD/" options="${DECDPO_BOX_ARGS:-}"
    command -v "$box" >/dev/null || decdpo_fail "$box is not on PATH" \
        "load its module in the template, or set DECDPO_BOX=singularity"
    [ -f "${DECDPO_IMAGE:-}" ] || decdpo_fail "DECDPO_IMAGE=${DECDPO_IMAGE:-} is no image" \
        "make one from jobs/decdpo.def, on a file system that all nodes share"
    [ -n "$options" ] || [ -z "${SLURM_GPUS_ON_NODE:-}${SLURM_JOB_GPUS:-}" ] || options="--nv"
    [ -z "${DECDPO_HOST_MPI:-}" ] || options+=" --env LD_LIBRARY_PATH=$DECDPO_HOST_MPI/lib"
    case "$1" in /*) folder="" ;; esac
    export DECDPO_VENV="$folder${1%/}.box"
    mkdir -p "$DECDPO_VENV/bin"
    # The ranks reach the launcher through the folder of its PMIx server, known when they start.
    cat >"$DECDPO_VENV/bin/decdpo" <<END
#!/bin/bash
binds="$PWD"
for folder in "${DECDPO_BIND:-}" "${DECDPO_HOST_MPI:-}" "\${PMIX_SERVER_TMPDIR:-}"; do
    [ -z "\$folder" ] || binds="\$binds,\$folder"
done
exec $box exec --bind "\$binds" $options "$(realpath "$DECDPO_IMAGE")" decdpo "\$@"
END
    chmod +x "$DECDPO_VENV/bin/decdpo"
}

# Run a command on every rank in the background, as a child of this shell; sets DECDPO_CHILD.
decdpo_launch() { # command...
    local extra
    read -r -a extra <<<"${DECDPO_LAUNCH_ARGS:-}"
    # A USR1 that comes while Python still imports would kill it: ignore the signal until decdpo
    # puts its own handler there.
    local task=(bash -c 'trap "" USR1; exec "$@"' task "$@")
    case "${DECDPO_LAUNCH:-srun}" in
        srun)
            # A rank that ends first (85 on an early stop) must not have its peers killed: their
            # status would hide its own. A failing rank aborts the others through MPI.
            srun --mpi=pmix --kill-on-bad-exit=0 "${extra[@]}" "${task[@]}" &
            ;;
        mpirun)
            if [ "$(id -u)" -eq 0 ]; then
                export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
            fi
            # Ranks with several threads need more than the one core that mpirun would bind.
            # shellcheck disable=SC2086 # two words, or none: then mpirun fills the allocation
            mpirun ${SLURM_NTASKS:+-n $SLURM_NTASKS} --bind-to none -x PATH -x OMP_NUM_THREADS \
                "${extra[@]}" "${task[@]}" &
            ;;
        *)
            decdpo_fail "DECDPO_LAUNCH=$DECDPO_LAUNCH is unknown" "set it to srun or mpirun"
            ;;
    esac
    DECDPO_CHILD=$!
}

# Pass a stop on to the ranks, again and again: the first may come before they can take it, and
# sent at once it could meet srun or mpirun while they start.
decdpo_forward_stop() { # pid
    while sleep "${DECDPO_GRACE:-5}" && kill -USR1 "$1"; do :; done
}

# What USR1 does once there is a launch: start that forwarding, in the background and once only.
decdpo_stop() {
    DECDPO_STOP=1
    if [ -n "$DECDPO_CHILD" ] && [ -z "$DECDPO_FORWARDER" ]; then
        decdpo_say "asked to stop: the ranks finish their round and save"
        decdpo_forward_stop "$DECDPO_CHILD" >/dev/null 2>&1 &
        DECDPO_FORWARDER=$!
    fi
}

# End mpirun where the run is over and it still waits, for a node that cannot be reached. A run that
# this start has not begun yet is not over.
decdpo_end_lingering() { # pid RUN
    local state began="" over=0
    # What may outlive this function must not keep the job's output open, which is 3.
    while sleep "${DECDPO_LINGER:-60}" 3>&- && kill -0 "$1"; do
        state="$(decdpo_state "$2" 3>&-)" || continue
        case "$state" in
            *training*) began=1 over=0 ;;
            *done*) over=$((over + 1)) ;;
            *) [ -z "$began" ] || over=$((over + 1)) ;;
        esac
        if [ "$over" -ge 2 ]; then
            decdpo_say "the run is over, but mpirun waits, for a node out of reach: it is ended" >&3
            kill -TERM "$1"
            sleep "${DECDPO_GRACE:-5}" 3>&-
            kill -KILL "$1"
        fi
    done
}

# Launch a command and wait for it; returns its status. USR1 stops it early, TERM marks the end.
decdpo_run() { # command...
    local status interrupted=""
    DECDPO_CHILD="" DECDPO_FORWARDER="" DECDPO_WATCH=""
    trap 'interrupted=1; decdpo_stop' USR1
    trap 'interrupted=1; DECDPO_TERMINATED=1' TERM
    decdpo_launch "$@"
    if [ -n "${DECDPO_SURVIVES:-}" ]; then
        decdpo_end_lingering "$DECDPO_CHILD" "$DECDPO_SURVIVES" 3>&1 >/dev/null 2>&1 &
        DECDPO_WATCH=$!
    fi
    [ -z "$DECDPO_STOP" ] || decdpo_stop
    while :; do
        status=0
        wait "$DECDPO_CHILD" || status=$?
        # wait also returns when a trap has run; then the status is the signal's, not the child's.
        [ -n "$interrupted" ] || break
        interrupted=""
    done
    local helper
    for helper in $DECDPO_FORWARDER $DECDPO_WATCH; do
        kill "$helper" 2>/dev/null || true
        wait "$helper" 2>/dev/null || true
    done
    return "$status"
}

# A job that reserved GPUs asks for them, unless it was given a device.kind: on a CPU that nobody
# asked for it would be slow without a word.
decdpo_device() { # option of decdpo train and resume...
    case "${SLURM_GPUS_ON_NODE:-${SLURM_JOB_GPUS:-0}}:$*" in
        0:* | *device.kind=*) ;;
        *) echo "--set device.kind=cuda" ;;
    esac
}

# The newest checkpoint's round; -1 if there is none.
decdpo_newest_round() { # RUN
    local folder newest=-1
    for folder in "$1"/checkpoints/round_*; do
        [[ "${folder##*/}" =~ ^round_0*([0-9]+)$ ]] || continue
        [ "${BASH_REMATCH[1]}" -le "$newest" ] || newest="${BASH_REMATCH[1]}"
    done
    echo "$newest"
}

# What `decdpo status` says of a run, as "state": "WORD".
decdpo_state() { # RUN
    decdpo status "$1" --json | grep -o '"state": "[a-z ]*"'
}

# Whether the run has come to its end; processes that still close its files are waited for.
decdpo_is_done() { # RUN
    local state try
    for try in 1 2 3 4 5; do
        state="$(decdpo_state "$1")" || return 1
        case "$state" in
            *done*) return 0 ;;
            *training*) [ "$try" = 5 ] || sleep "${DECDPO_GRACE:-5}" ;;
            *) return 1 ;;
        esac
    done
    return 1
}

# How many of the last starts in RUN.starts were lost and made no progress.
decdpo_lost_in_a_row() { # file
    awk '{ lost = (($4 == 75 || $4 == "killed") && $5 >= $6) ? lost + 1 : 0 }
        END { print lost + 0 }' "$1"
}

# A start that was killed together with its script, as on a node that failed, has left no line in
# RUN.starts, but the file that says when it began: write the line for it.
decdpo_note_killed() { # RUN newest round
    [ -s "$1.begun" ] || return 0
    echo "$(cat "$1.begun") $2" >>"$1.starts"
    decdpo_say "the start before this one was killed with its job, with round $2 saved"
}

# Give up before a start that would only repeat what came to nothing. A job that somebody submitted
# by hand is started, whatever became of those before.
decdpo_limit() { # RUN
    local starts lost
    [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || [ -n "${DECDPO_CHAINED:-}" ] || return 0
    touch "$1.starts"
    starts="$(wc -l <"$1.starts")"
    lost="$(decdpo_lost_in_a_row "$1.starts")"
    if [ "$starts" -ge "${DECDPO_MAX_STARTS:-200}" ]; then
        decdpo_fail "$1 was started $starts times" \
            "look at $1.starts; raise DECDPO_MAX_STARTS, or submit it again by hand"
    elif [ "$lost" -gt "${DECDPO_MAX_LOST:-3}" ]; then
        decdpo_fail "$1 was lost in $lost starts in a row without progress" \
            "look at the log and at $1.starts, then submit it again by hand"
    fi
}

# Submit the job that goes on after this one, whatever becomes of it; sets DECDPO_SUCCESSOR.
decdpo_submit_next() { # CONFIG RUN option...
    local limit options=()
    limit="$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%l 2>/dev/null)" || limit=""
    [ -z "$limit" ] || options+=("--time=$limit")
    [ -z "${SLURM_JOB_NUM_NODES:-}" ] || options+=("--nodes=$SLURM_JOB_NUM_NODES")
    [ -z "${SLURM_NTASKS_PER_NODE:-}" ] || options+=("--ntasks-per-node=$SLURM_NTASKS_PER_NODE")
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || options+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
    [ -z "${SLURM_GPUS_PER_NODE:-}" ] || options+=("--gpus-per-node=$SLURM_GPUS_PER_NODE")
    [ -z "${SLURM_JOB_PARTITION:-}" ] || options+=("--partition=$SLURM_JOB_PARTITION")
    [ -z "${SLURM_JOB_ACCOUNT:-}" ] || options+=("--account=$SLURM_JOB_ACCOUNT")
    # shellcheck disable=SC2086 # several options
    if DECDPO_SUCCESSOR="$(DECDPO_CHAINED=1 sbatch --parsable \
        --dependency="afterany:$SLURM_JOB_ID" "${options[@]}" ${DECDPO_NEXT_ARGS:-} \
        "$DECDPO_HOME/jobs/chain.slurm" "$@")"; then
        DECDPO_SUCCESSOR="${DECDPO_SUCCESSOR%%;*}"
        decdpo_say "job $DECDPO_SUCCESSOR goes on after this one"
    else
        DECDPO_SUCCESSOR=""
        decdpo_say "the job that shall go on after this one could not be submitted"
    fi
}

# Withdraw that job: there is nothing left for it, or it would only fail again.
decdpo_no_next() {
    [ -n "${DECDPO_SUCCESSOR:-}" ] || return 0
    scancel "$DECDPO_SUCCESSOR" && decdpo_say "job $DECDPO_SUCCESSOR is not needed: cancelled"
    DECDPO_SUCCESSOR=""
}

decdpo_requeue() { # RUN why
    if [ -e "$1/halt" ]; then
        decdpo_say "$2, and $1/halt asks for a rest: not requeued. Remove it and submit again"
        decdpo_no_next
        return
    fi
    shift
    # SLURM ends a cancelled job and one past its limit alike; only its reason says which it was.
    if [ -n "${DECDPO_TERMINATED:-}" ] \
        && ! scontrol show job "$SLURM_JOB_ID" 2>/dev/null | grep -q 'Reason=TimeLimit'; then
        decdpo_say "$1, and ended from outside: not requeued. Submit it again to resume"
        decdpo_no_next
    elif [ "${DECDPO_NEXT:-requeue}" = chain ]; then
        if [ -n "${DECDPO_SUCCESSOR:-}" ]; then
            decdpo_say "$1: job $DECDPO_SUCCESSOR goes on"
        else
            decdpo_say "$1, but no job follows. Submit it again to resume"
        fi
    elif scontrol requeue "$SLURM_JOB_ID"; then
        decdpo_say "$1: back into the queue"
    else
        decdpo_say "$1, but it could not be requeued. Submit it again to resume"
    fi
}

# One start of a run: train it, or resume it if it has checkpoints, then decide what comes next.
# Ends the script with decdpo's exit status. Only progress, or a rare loss, earns a new start.
decdpo_chain() { # CONFIG RUN [option of decdpo train and resume]...
    local config="$1" run="${2%/}" status=0 before after lost
    shift 2
    decdpo_environment
    mkdir -p "$(dirname "$run")"
    local starts="$run.starts" # a line for each start: when job restart status before after
    before="$(decdpo_newest_round "$run")"
    decdpo_note_killed "$run" "$before"
    rm -f "$run.begun"
    decdpo_limit "$run"
    case "${DECDPO_NEXT:-requeue}" in
        requeue) ;;
        chain) decdpo_submit_next "$config" "$run" "$@" ;;
        *) decdpo_fail "DECDPO_NEXT=$DECDPO_NEXT is unknown" "set it to requeue or chain" ;;
    esac
    local device
    read -r -a device <<<"$(decdpo_device "$@")"
    set -- ${device[@]+"${device[@]}"} "$@"
    # The options go to every start: one that says device.threads would else hold for the first.
    local command=(decdpo resume "$run" --set "device.threads=$OMP_NUM_THREADS" "$@")
    if [ "$before" -lt 0 ]; then
        if [ -e "$run" ] && [ -s "$starts" ]; then
            # An earlier start of this chain ended before its first checkpoint: keep it aside.
            mv "$run" "$run.unsaved-$(wc -l <"$starts")"
        fi
        command=(decdpo train "$config" --out "$run" --set "device.threads=$OMP_NUM_THREADS" "$@")
    fi
    decdpo_resources
    decdpo_say "${SLURM_NTASKS:-1} ranks on ${SLURM_JOB_NODELIST:-?}: ${command[*]}"
    echo "$(date '+%FT%T') $SLURM_JOB_ID ${SLURM_RESTART_COUNT:-0} killed $before" >"$run.begun"
    DECDPO_SURVIVES=""
    case "${DECDPO_LAUNCH:-srun} ${DECDPO_LAUNCH_ARGS:-}" in
        "mpirun "*--with-ft*) DECDPO_SURVIVES="$run" ;;
    esac
    decdpo_run "${command[@]}" || status=$?
    rm -f "$run.begun"
    # An mpirun that was ended because it waited in vain says nothing of the run.
    if [ -n "${DECDPO_SURVIVES:-}" ] && [ "$status" -ge 128 ]; then
        case "$(decdpo_state "$run")" in
            *done*) status=0 ;;
            *stopped*) status=85 ;;
        esac
    fi
    # mpirun ends with 0 when a node is gone with the daemon that it had there.
    if [ "$status" -eq 0 ] && ! decdpo_is_done "$run"; then
        decdpo_say "the launcher ended with 0, and the run is not done: a node was lost"
        status=75
    fi
    after="$(decdpo_newest_round "$run")"
    echo "$(date '+%FT%T') $SLURM_JOB_ID ${SLURM_RESTART_COUNT:-0} $status $before $after" \
        >>"$starts"
    case "$status" in
        0)
            decdpo_say "done: $run"
            decdpo_no_next
            ;;
        85)
            if [ "$after" -gt "$before" ]; then
                decdpo_requeue "$run" "stopped early with round $after saved"
            else
                decdpo_say "stopped early without a new round since $before: not requeued." \
                    "Give the job more time, or a round less work"
                decdpo_no_next
            fi
            ;;
        75)
            lost="$(decdpo_lost_in_a_row "$starts")"
            if [ "$lost" -le "${DECDPO_MAX_LOST:-3}" ]; then
                decdpo_requeue "$run" "a peer was lost or stalled"
            else
                decdpo_say "lost a peer in $lost starts in a row without progress: not requeued"
                decdpo_no_next
            fi
            ;;
        *)
            decdpo_say "failed with status $status: not requeued"
            decdpo_no_next
            ;;
    esac
    exit "$status"
}
