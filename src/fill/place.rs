//! Checks once whether containerd's snapshots can be filled from here: its directory is mounted writable, and the file system
//! and this process can do what a layer needs.

use std::path::Path;

use rustix::fs::{self, CWD, Dir, FileType, Gid, Mode, RenameFlags, Uid, XattrFlags};
use rustix::io::Errno;

use crate::runtime::containerd::{Config, Labels, Store};

/// The snapshotter whose directories are filled.
const SNAPSHOTTER: &str = "overlayfs";
/// Any user but root, to try to give files away.
const OTHER: u32 = 12_345;

/// Returns the reason why snapshots cannot be filled from here, if any.
pub(super) async fn check(store: &Store) -> Result<(), String> {
    let config = store.config().await.map_err(|error| error.message)?;
    check_config(config)?;
    let lease = store.lease_trial().await.map_err(|error| error.message)?;
    let tried = try_snapshot(store, &lease).await;
    store.release(&lease, false).await;
    tried
}

fn check_config(config: &Config) -> Result<(), String> {
    if config.has_own_registries {
        return Err("registries are configured in containerd's own configuration".to_owned());
    }
    if config.snapshotter != SNAPSHOTTER {
        return Err(format!("the snapshotter is {}", config.snapshotter));
    }
    let Some(root) = &config.snapshotter_root else {
        return Err("containerd does not report its root directory".to_owned());
    };
    match root.join("snapshots").is_dir() {
        true => Ok(()),
        false => Err(format!("{} is not mounted", root.display())),
    }
}

async fn try_snapshot(store: &Store, lease: &str) -> Result<(), String> {
    let made = store.prepare(lease, SNAPSHOTTER, lease, "", Labels::new());
    let made = made.await.map_err(|error| error.message)?;
    let made = made.ok_or("containerd made no snapshot")?;
    let tried = match made.directories() {
        Some((directory, _)) => {
            let tried = tokio::task::spawn_blocking(move || try_directory(&directory));
            tried.await.unwrap_or_else(|error| Err(error.to_string()))
        }
        None => Err("unexpected mounts of a snapshot".to_owned()),
    };
    store.remove(SNAPSHOTTER, &made).await;
    tried
}

/// Tries in an empty directory what unpacking does. The right to attributes that the kernel reserves is not needed: a layer that has
/// them is unpacked by containerd.
fn try_directory(directory: &Path) -> Result<(), String> {
    let shown = directory.display();
    if !directory.is_dir() {
        return Err(format!("{shown} is not mounted"));
    }
    let step = |what: &str, done: Result<(), Errno>| {
        done.map_err(|errno| format!("failed to {what} in {shown}: {errno}"))
    };
    let [one, other] = ["one", "other"].map(|name| directory.join(name));
    let mode = Mode::from_raw_mode(0o700);
    step("make a directory", fs::mkdir(&one, mode))?;
    step("make a directory", fs::mkdir(&other, mode))?;
    let give = fs::chown(&one, Some(Uid::from_raw(OTHER)), Some(Gid::from_raw(OTHER)));
    step("give a directory to another user", give)?;
    let inside = one.join("inside");
    step("write to another user's directory", fs::mkdir(inside, mode))?;
    let mode = Mode::from_raw_mode(0o711);
    step("change another user's directory", fs::chmod(&one, mode))?;
    let whiteout = directory.join("whiteout");
    let none = fs::makedev(0, 0);
    let made = fs::mknodat(CWD, whiteout, FileType::CharacterDevice, mode, none);
    step("make a whiteout", made)?;
    match fs::setxattr(&one, "user.harpoon", b"", XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP) => {
            return Err(format!(
                "the file system of {shown} has no extended attributes"
            ));
        }
        set => step("set an attribute", set)?,
    }
    let exchanged = fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE);
    step("exchange directories", exchanged)?;
    match knows_types(directory) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("the file system of {shown} has no d_type")),
        Err(errno) => step("list a directory", Err(errno)),
    }
}

/// Returns whether the file system tells the types of a directory's entries.
fn knows_types(directory: &Path) -> Result<bool, Errno> {
    let open = fs::open(directory, fs::OFlags::DIRECTORY, Mode::empty())?;
    for entry in Dir::read_from(open)? {
        if entry?.file_type() == FileType::Unknown {
            return Ok(false);
        }
    }
    Ok(true)
}
