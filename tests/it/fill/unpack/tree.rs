//! Describes a directory tree, so that two can be compared.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use harpoon::registry::digest::sha256;

/// Every entry of a tree with all that can be seen of it, by path.
pub type Tree = BTreeMap<PathBuf, String>;

/// Describes a tree. Times of modification not before `start`, in seconds, are those of the unpacking: `now`.
pub fn tree(root: &Path, start: i64) -> Tree {
    let mut tree = Tree::new();
    let mut inodes = HashMap::new();
    let top = fs::symlink_metadata(root).unwrap();
    let mode = format!("{:o} {}:{}", top.mode(), top.uid(), top.gid());
    tree.insert(".".into(), format!("{mode} {}", xattrs(root)));
    walk(root, Path::new(""), start, &mut tree, &mut inodes);
    tree
}

fn walk(
    root: &Path,
    below: &Path,
    start: i64,
    tree: &mut Tree,
    inodes: &mut HashMap<u64, PathBuf>,
) {
    let mut names: Vec<_> = fs::read_dir(root.join(below))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    for name in names {
        let path = below.join(name);
        let full = root.join(&path);
        let Ok(data) = fs::symlink_metadata(&full) else {
            // overlayfs lists a whiteout of a directory that only one layer has.
            tree.insert(path, "deleted".to_owned());
            continue;
        };
        let time = if data.mtime() >= start {
            "now".to_owned()
        } else {
            format!("{}.{:09}", data.mtime(), data.mtime_nsec())
        };
        let (kind, content) = (data.file_type(), &full);
        let content = if kind.is_file() {
            format!("{} {}", data.len(), sha256(&fs::read(content).unwrap()))
        } else if kind.is_symlink() {
            format!("-> {}", fs::read_link(content).unwrap().display())
        } else if kind.is_char_device() || kind.is_block_device() {
            format!("device {:x}", data.rdev())
        } else {
            String::new()
        };
        let mut links = String::new();
        if !kind.is_dir() && data.nlink() > 1 {
            let first = inodes.entry(data.ino()).or_insert_with(|| path.clone());
            links = format!(" {} links, as {}", data.nlink(), first.display());
        }
        let mode = format!("{:o} {}:{}", data.mode(), data.uid(), data.gid());
        let description = format!("{mode} {time} {}{links} {content}", xattrs(&full));
        tree.insert(path.clone(), description);
        if kind.is_dir() {
            walk(root, &path, start, tree, inodes);
        }
    }
}

fn xattrs(path: &Path) -> String {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    let mut found = BTreeMap::new();
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
        found.insert(
            name.escape_ascii().to_string(),
            value[..length].escape_ascii().to_string(),
        );
    }
    if found.is_empty() {
        String::new()
    } else {
        format!("{found:?}")
    }
}

/// The differences of two trees, one per line.
pub fn differences(ours: &Tree, theirs: &Tree) -> Vec<String> {
    let paths: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let mut differences = Vec::new();
    for path in paths {
        let (our, their) = (ours.get(path), theirs.get(path));
        if our != their {
            let shown = path.as_os_str().as_bytes().escape_ascii();
            differences.push(format!("{shown}: ours {our:?}, containerd's {their:?}"));
        }
    }
    differences
}
