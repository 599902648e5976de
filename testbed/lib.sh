# Common code of the test bed's scripts; sourced, never run.
# shellcheck shell=bash disable=SC2034,SC2154  # the scripts that source this use bed and set dir
set -euo pipefail
umask 022
bed=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/harpoon-testbed

# The runtimes that ../start starts: the machine's own (debian), those of the newer suite (modern), or these with the Docker Engine's images
# in containerd's store (modern-store).
runtimes=${HARPOON_RUNTIMES:-debian}

die() { echo "${0##*/}: $*" >&2; exit 1; }

# The mirror that the machine's own packages come from; Debian's own on another distribution, such as Ubuntu.
debian_mirror() {
  local mirror
  # shellcheck source=/dev/null
  [ "$(. /etc/os-release && echo "$ID")" = debian ] || { echo http://deb.debian.org/debian; return; }
  mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null |
    sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb  *\(\[[^]]*\] *\)\?\([^ ]*\).*/\2/p' | sed -n 1p || true)
  [ -n "$mirror" ] || die "found no Debian mirror in /etc/apt"
  echo "$mirror"
}

# Prints the usage line at the top of the script and exits 2.
usage() { sed -n 's/^# \(usage: \)/\1/p' "$0" >&2; exit 2; }

as_root() { [ "$(id -u)" = 0 ] || die "must run as root: $1"; }

# Puts the chosen runtimes' programs first in PATH.
choose_runtimes() {
  case $runtimes in
    debian) return ;;
    modern | modern-store) [ -f "$cache/modern/.programs" ] || die "the programs of '$runtimes' are missing: run testbed/install modern" ;;
    *) die "HARPOON_RUNTIMES is debian, modern or modern-store, not '$runtimes'" ;;
  esac
  PATH=$cache/modern/bin:$PATH
}

# Checks that process PID runs and belongs to DIR: its command line mentions DIR. While the kernel loads a program, for a second
# on a slow disk, the process has no command line yet; unlike a dead process or a zombie it has an executable.
runs() { # PID DIR
  local command
  command=$(tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline") || return 1
  [[ $command == *"$2/"* ]] || [[ -z $command && -e /proc/$1/exe ]]
}

# Starts a daemon in its own session. The process records its own id before it becomes the daemon, so that `stop` knows every
# daemon.
spawn() { # NAME COMMAND...
  local name=$1; shift
  rm -f "$dir/$name.pid"
  TMPDIR=$dir/tmp setsid bash -c 'echo $$ >"$0.new"; mv "$0.new" "$0"; exec "$@"' "$dir/$name.pid" "$@" </dev/null >>"$dir/$name.log" 2>&1 &
  until [ -s "$dir/$name.pid" ]; do
    kill -0 $! 2>/dev/null || failed "$name"
    sleep 0.005
  done
  disown
}

# Waits until a command succeeds: returns 1 if the daemon ends first or the time is over.
await() { # NAME SECONDS COMMAND...
  local name=$1 end=$((SECONDS + $2)); shift 2
  until "$@" >/dev/null 2>&1; do
    runs "$(cat "$dir/$name.pid")" "$dir" && [ $SECONDS -lt $end ] || return 1
    sleep 0.02
  done
}

# Checks that daemon NAME itself listens on this loopback port: another process that took the port first would answer a probe,
# too.
listens() { # NAME PORT
  local inode
  inode=$(awk -v address="0100007F:$(printf %04X "$2")" '$2 == address && $4 == "0A" { print $10 }' /proc/net/tcp)
  [ -n "$inode" ] && find "/proc/$(cat "$dir/$1.pid")/fd" -lname "socket:?$inode?" 2>/dev/null | grep -q .
}

# A free loopback port, below the range of outgoing connections.
free_port() {
  local port
  while port=$(shuf -n1 -i 20000-29999); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

# Starts daemon NAME, which listens on a port, by calling `FUNCTION PORT`; retries with another port if another process took it
# first. The port is stored in DIR/NAME.port and reused by a restart.
spawn_on_port() { # NAME FUNCTION [PORT]
  local port=${3:-$(cat "$dir/$1.port" 2>/dev/null || true)}
  for _ in 1 2 3 4 5; do
    "$2" "${port:=$(free_port)}"
    if await "$1" 60 listens "$1" "$port"; then echo "$port" >"$dir/$1.port"; return; fi
    tail -n 20 "$dir/$1.log" | grep -q 'address already in use' || break
    [ -n "${3:-}" ] || port=
    sleep 0.2
  done
  failed "$1"
}

failed() { # NAME
  echo "testbed: $1 did not start; the end of its log:" >&2
  tail -n 25 "$dir/$1.log" >&2 || true
  signal_recorded "$dir" KILL 5
  exit 1
}

# Checks that the file system below DIR supports an overlay. (It does not if it is one itself, in a container.)
overlay_works() {
  local try=$dir/overlay-try works=1
  mkdir -p "$try"/{lower,upper,work,merged}
  if mount -t overlay overlay -o "lowerdir=$try/lower,upperdir=$try/upper,workdir=$try/work" "$try/merged" 2>/dev/null; then
    umount "$try/merged"; works=0
  fi
  rm -rf "$try"
  return $works
}

# Signals every process that DIR records, and waits until they have ended. A recorded id that another program uses by now, whose
# command line does not mention DIR, is skipped.
signal_recorded() { # DIR SIGNAL SECONDS
  local file pid pids=() end=$((SECONDS + $3))
  for file in "$1"/*.pid "$1"/exec/containerd/containerd.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    runs "$pid" "$1" || continue
    pids+=("$pid"); kill "-$2" "$pid" 2>/dev/null || true
  done
  for pid in "${pids[@]}"; do
    while runs "$pid" "$1"; do
      [ $SECONDS -lt $end ] || return 1
      sleep 0.01
    done
  done
}

# Gives a daemon's store a small file system of its own; `stop` unmounts it.
space() { # DIR BYTES
  mkdir -p "$1"
  mountpoint -q "$1" || mount -t tmpfs -o "size=$2" tmpfs "$1"
}

# Gives a daemon's store a file system of its own, of one of these kinds; `stop` unmounts it.
#   BYTES           a disk: ext4 on a file that takes only what is written
#   untyped:BYTES   the same without the types of entries in directories (d_type)
#   bare            without extended attributes (ramfs)
disk() { # DIR KIND
  mkdir -p "$1"
  ! mountpoint -q "$1" || return 0
  if [ "$2" = bare ]; then mount -t ramfs ramfs "$1"; return; fi
  local features=filetype
  [[ $2 != untyped:* ]] || features=^filetype
  need mkfs.ext4
  [ -f "$1.disk" ] || { truncate -s "${2#untyped:}" "$1.disk"; mkfs.ext4 -q -F -E lazy_itable_init=1 -O "$features" "$1.disk"; }
  mount -o loop "$1.disk" "$1"
}

unmount_below() { # DIR
  local target
  awk -v dir="$1/" 'index($2, dir) == 1 { print $2 }' /proc/self/mounts | sort -r | while read -r target; do
    target=$(printf '%b' "$target")
    umount "$target" 2>/dev/null || umount -l "$target" 2>/dev/null || true
  done
}

# Removes the control groups of a cluster's containers that were killed with their node.
remove_cgroups() { # DIR
  local containers=$1/lib/containerd/io.containerd.runtime.v2.task/k8s.io end=$((SECONDS + 10))
  [ -d "$containers" ] || return 0
  ls "$containers" >"$1/containers"
  groups() { find /sys/fs/cgroup -depth -type d -path '*/k8s.io/*' 2>/dev/null | grep -Ff "$1/containers" || true; }
  while groups "$1" | xargs -r rmdir 2>/dev/null || true; [ -n "$(groups "$1")" ]; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.05
  done
  find /sys/fs/cgroup -depth -type d -name k8s.io -exec rmdir {} + 2>/dev/null || true
}
