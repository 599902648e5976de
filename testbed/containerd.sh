# The configuration of containerd with its CRI server, in the version that the chosen runtimes read; sourced.
# shellcheck shell=bash disable=SC2154  # ./start sets these

# Prints all of it but the places of its own store and socket. Asks $dir for registries (certs.d) and networks (cni).
containerd_config() { # SANDBOX-IMAGE
  local snapshotter=overlayfs; overlay_works || snapshotter=native
  if [ "$runtimes" = debian ]; then
    cat <<CONFIG
version = 2
temp = "$dir/tmp"
[plugins."io.containerd.internal.v1.opt"]
path = "$dir/opt"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = "$1"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "$snapshotter"
discard_unpacked_layers = ${discard:-false}
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "$dir/cni"
bin_dir = "/usr/lib/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "$dir/certs.d"
CONFIG
  else
    # NRI's socket has one place on a machine, and nobody here uses it. Of three downloads at once for all pulls together, which is the
    # default from containerd 2.1 on, one test's stalled ones would hold up all others.
    cat <<CONFIG
version = 3
temp = "$dir/tmp"
[plugins."io.containerd.internal.v1.opt"]
path = "$dir/opt"
[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins."io.containerd.transfer.v1.local"]
max_concurrent_downloads = 100
[plugins."io.containerd.cri.v1.images"]
snapshotter = "$snapshotter"
discard_unpacked_layers = ${discard:-false}
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "$1"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "$dir/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
conf_dir = "$dir/cni"
bin_dirs = ["/usr/lib/cni"]
CONFIG
  fi
}
