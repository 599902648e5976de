//! Resolves paths of a layer as containerd does (continuity's `fs.RootPath`, Go's `path/filepath`).
//!
//! Symbolic links are read, never followed by the kernel: their targets are joined with the path and resolved again beneath the
//! root. containerd's own result depends on the host's files where a link leads through another link: that is [`UnpackError::Unsupported`].

use std::os::fd::AsFd;

use rustix::fs;
use rustix::io::Errno;

use super::UnpackError;
use super::dir::{Dir, LOOKUP};

/// Links on the way to one entry. containerd allows 255; the kernel, in which the result is used, 40.
const LINKS_MAX: usize = 40;
/// The longest resolved path: containerd's calls have the path of its own directory before it, 4,096 bytes together.
pub(super) const PATH_MAX: usize = 3800;

/// The shortest equivalent of a path, as Go's `Clean`: without `.`, empty components, and `..` where another component precedes it.
pub(super) fn clean(path: &[u8]) -> Vec<u8> {
    let rooted = path.first() == Some(&b'/');
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => match names.last() {
                Some(last) if *last != b".." => _ = names.pop(),
                _ if rooted => {}
                _ => names.push(name),
            },
            _ => names.push(name),
        }
    }
    let joined = names.join(&b'/');
    match (rooted, joined.is_empty()) {
        (true, _) => [b"/", joined.as_slice()].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => joined,
    }
}

/// The cleaned path within the root, without a leading slash; the root itself is empty.
pub(super) fn within_root(path: &[u8]) -> Vec<u8> {
    let mut path = clean(&[b"/", path].concat());
    path.remove(0);
    path
}

/// The directory of a path, up to and including the last slash, and what follows it, as Go's `Split`.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    path.split_at(end)
}

/// The directory and the last component of a path within the root.
pub(super) fn parent(path: &[u8]) -> (&[u8], &[u8]) {
    let (dir, name) = split(path);
    (dir.strip_suffix(b"/").unwrap_or(dir), name)
}

/// The path of an entry of a directory.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}

/// Resolves all links of a path beneath the root, including the last component; the path need not exist.
///
/// # Errors
/// [`UnpackError`].
pub(super) fn resolve(root: &Dir, path: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let mut path = path.to_vec();
    let mut links = 0;
    loop {
        let before = links;
        path = walk(root, &path, &mut links)?;
        if links > LINKS_MAX {
            return Err(UnpackError::unsupported("too many symbolic links", &path));
        }
        if links == before {
            let path = within_root(&path);
            return if path.len() > PATH_MAX {
                Err(UnpackError::unsupported("long path", &path))
            } else {
                Ok(path)
            };
        }
    }
}

/// One pass over the components, which replaces each link by its target.
fn walk(root: &Dir, path: &[u8], links: &mut usize) -> Result<Vec<u8>, UnpackError> {
    let mut walked: Vec<u8> = Vec::new();
    for name in path.split(|b| *b == b'/') {
        if name.is_empty() {
            continue;
        }
        let next = within_root(&[&walked, b"/".as_slice(), name].concat());
        walked = match target(root, &next)? {
            None => next,
            Some(target) => {
                *links += 1;
                if target.first() == Some(&b'/') {
                    target
                } else {
                    clean(&[&walked, b"/".as_slice(), &target].concat())
                }
            }
        };
        if *links > LINKS_MAX || walked.len() > 2 * PATH_MAX {
            return Err(UnpackError::unsupported("too many symbolic links", &walked));
        }
    }
    Ok(walked)
}

/// The target of a symbolic link; `None` for anything else, and where nothing exists.
fn target(root: &Dir, path: &[u8]) -> Result<Option<Vec<u8>>, UnpackError> {
    if path.is_empty() {
        return Ok(None);
    }
    let (dir, name) = parent(path);
    let dir = match root.sub(dir, LOOKUP) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => {
            return Err(UnpackError::unsupported("link through another link", path));
        }
        Err(errno) => return Err(UnpackError::filesystem("open", path, errno)),
    };
    match fs::readlinkat(dir.as_fd(), name, Vec::new()) {
        Ok(target) => Ok(Some(target.into_bytes())),
        Err(Errno::INVAL | Errno::NOENT) => Ok(None),
        Err(errno) => Err(UnpackError::filesystem("read link", path, errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn paths_are_cleaned_as_in_go() {
        for (path, cleaned) in [
            ("", "."),
            ("abc", "abc"),
            ("abc/def/", "abc/def"),
            ("/abc", "/abc"),
            ("/", "/"),
            ("..", ".."),
            ("../../abc", "../../abc"),
            ("abc//def//ghi", "abc/def/ghi"),
            ("///abc", "/abc"),
            ("abc/./def", "abc/def"),
            ("/../abc", "/abc"),
            ("abc/def/../../..", ".."),
            ("/abc/def/../../..", "/"),
            ("abc/../../././../def", "../../def"),
        ] {
            assert_eq!(clean(path.as_bytes()), cleaned.as_bytes(), "{path}");
        }
    }

    #[test]
    fn links_are_resolved_beneath_root() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("root");
        std::fs::create_dir_all(path.join("usr/lib")).unwrap();
        std::fs::create_dir_all(top.path().join("usr/lib/outside")).unwrap();
        for (link, target) in [
            ("lib", "usr/lib"),
            ("lib64", "/usr/lib"),
            ("up", "../../usr"),
            ("usr/lib/self", "."),
            ("usr/back", "../usr"),
            ("missing", "not/there"),
            ("loop", "loop"),
        ] {
            symlink(target, path.join(link)).unwrap();
        }
        let root = Dir::open(&path).unwrap();
        for (path, resolved) in [
            ("lib/x", "usr/lib/x"),
            ("lib64/x/y", "usr/lib/x/y"),
            ("up/lib", "usr/lib"),
            ("../../lib", "usr/lib"),
            ("usr/lib/self/self/x", "usr/lib/x"),
            ("usr/back/lib", "usr/lib"),
            ("missing/x", "not/there/x"),
            ("plain/x", "plain/x"),
            ("", ""),
        ] {
            let actual = resolve(&root, path.as_bytes()).unwrap();
            assert_eq!(actual, resolved.as_bytes(), "{path}");
        }
        let error = resolve(&root, b"loop/x").unwrap_err();
        assert!(error.needs_diff_service(), "{error}");
    }
}
