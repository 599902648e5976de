# The configuration of containerd with its CRI server, in the version that the chosen runtimes read; sourced.
# shellcheck shell=bash disable=SC2154  # ./start sets these

# Prints the configuration of registries: a directory or, as older configurations have it, a mirror in the CRI plugin itself.
registries() { # PLUGIN
  if [ -z "${mirror:-}" ]; then
    printf '[plugins."%s".registry]\nconfig_path = "%s"\n' "$1" "$dir/certs.d"
  else
    printf '[plugins."%s".registry.mirrors."%s"]\nendpoint = ["%s"]\n' "$1" "${mirror%%=*}" "${mirror#*=}"
  fi
}

# Prints the configuration without the paths of the store and the socket. Uses registries (certs.d) and networks (cni) in $dir.
containerd_config() { # SANDBOX-IMAGE
  local snapshotter=${snapshotter:-overlayfs}; overlay_works || snapshotter=native
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
$(registries io.containerd.grpc.v1.cri)
CONFIG
  else
    # NRI's socket has a fixed path on a machine and is not used here. containerd 2.1 and later limit downloads to three at once
    # for all pulls together: one test's stalled ones would block all others.
    cat <<CONFIG
version = 3
temp = "$dir/tmp"
disabled_plugins = [${without:-}]
[plugins."io.containerd.internal.v1.opt"]
path = "$dir/opt"
[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins."io.containerd.transfer.v1.local"]
max_concurrent_downloads = ${downloads:-100}
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "$snapshotter"
[plugins."io.containerd.cri.v1.images"]
${buffer:+use_local_image_pull = true
max_concurrent_downloads = $downloads
concurrent_layer_fetch_buffer = $buffer}
snapshotter = "$snapshotter"
discard_unpacked_layers = ${discard:-false}
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "$1"
$(registries io.containerd.cri.v1.images)
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
conf_dir = "$dir/cni"
bin_dirs = ["/usr/lib/cni"]
CONFIG
    # A runtime handler with a snapshotter of its own, as for a runtime class.
    [ -z "${handler:-}" ] || cat <<CONFIG
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "$handler"
[plugins."io.containerd.cri.v1.images".runtime_platforms.other]
snapshotter = "$handler"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.other]
runtime_type = "io.containerd.runc.v2"
snapshotter = "$handler"
CONFIG
  fi
}
