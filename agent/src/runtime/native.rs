//! The root file system of a native service: the gateway's own, read-only and without what is mounted
//! below it, with a few places that are the service's own.
//!
//! | where | what |
//! |---|---|
//! | `/` | bound without submounts, read-only |
//! | the artifacts | read-only |
//! | the runtime directory | the service's own, stays |
//! | `/run`, `/tmp` | in memory, empty, the service's own; what it mounts is below `/run` |
//! | what is hidden | empty |
//! | `/etc/resolv.conf`, `/etc/hosts` | the pod's, where the root file system has such a file |
//!
//! Places that are made for a service lie in directories that the gateway's root file system has, or
//! in one that is mounted over one of these: nothing can be made in a read-only one.

use std::io;
use std::path::{Component, Path, PathBuf};

use containerd_client::types::Mount;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use super::error::ImageProblem;
use super::oci::ImageConfig;

/// `nobody`.
pub(super) const NOBODY: &str = "65534:65534";

/// What is not for services, in every one of them.
const EMPTY: [(&str, &str); 2] = [("/run", "mode=755,size=16m"), ("/tmp", "mode=1777,size=64m")];

/// What every container has of its own.
const OWN: [&str; 3] = ["/dev", "/proc", "/sys"];

/// The gateway's own file system as a service's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeRoot {
    /// Name of the artifact.
    pub artifact: String,
    /// The gateway's root file system as it is mounted for services alone: what is mounted on the
    /// gateway later must not come in, and what a service unmounts must not go there.
    pub root: PathBuf,
    /// Its directory.
    pub artifact_dir: PathBuf,
    /// The directory of all artifacts.
    pub software_dir: PathBuf,
    /// The service's own directory, which it may write to.
    pub runtime_dir: PathBuf,
    /// Directories that it is not to see, but for those above that are below them.
    pub hidden: Vec<PathBuf>,
    /// Files and sockets that it is not to find.
    pub masked: Vec<PathBuf>,
    /// An empty directory that everybody may look into.
    pub empty: PathBuf,
}

impl NativeRoot {
    /// What an image's configuration would say.
    pub(super) fn config(&self) -> ImageConfig {
        let directory = |path: &Path| path.to_string_lossy().into_owned();
        let env = vec![
            format!("HOME={}", directory(&self.runtime_dir)),
            format!("CORACLE_ARTIFACT={}", directory(&self.artifact_dir)),
            format!("CORACLE_RUNTIME={}", directory(&self.runtime_dir)),
        ];
        ImageConfig::native(env, directory(&self.runtime_dir), NOBODY.into())
    }

    /// What containerd is to mount as the root file system.
    pub(super) fn rootfs(&self) -> Vec<Mount> {
        vec![Mount {
            r#type: "bind".into(),
            source: self.root.to_string_lossy().into_owned(),
            options: vec!["bind".into(), "ro".into()],
            ..Mount::default()
        }]
    }

    /// A text with the directories put in for `${artifact}` and `${runtime}`.
    pub fn text(&self, text: &str) -> String {
        let text = text.replace("${artifact}", &self.artifact_dir.to_string_lossy());
        text.replace("${runtime}", &self.runtime_dir.to_string_lossy())
    }

    /// The program: one of the artifact unless it begins with a slash.
    pub(super) fn program(&self, text: &str) -> String {
        let text = self.text(text);
        match text.starts_with('/') {
            true => text,
            false => self.artifact_dir.join(text).to_string_lossy().into_owned(),
        }
    }

    /// Whether a file can be mounted over one of the root file system: where there is none, none can
    /// be made.
    pub(super) fn has_place(file: &Path) -> bool {
        // What is hidden by a mount on the way, or is a link into one, is not known from here.
        !matches!(reach(file), Ok(Reach::Nowhere))
    }

    /// What is mounted into the root file system, in this order.
    ///
    /// # Errors
    /// It cannot be told whether something that is to be hidden is there.
    pub(super) fn mounts(&self) -> Result<Vec<Value>, ImageProblem> {
        let tmpfs = |path: &Path, size: &str| {
            let mut options = vec!["nosuid", "nodev", "noexec"];
            options.extend(size.split(','));
            json!({ "destination": path, "type": "tmpfs", "source": "tmpfs", "options": options })
        };
        let mut mounts: Vec<Value> =
            EMPTY.iter().map(|(path, size)| tmpfs(Path::new(path), size)).collect();
        let covers = covers(&self.hidden, &[&self.software_dir, &self.runtime_dir], reach)
            .map_err(ImageProblem::Hidden)?;
        let bind = |source: &Path, path: &Path, access: &str| {
            let options = ["bind", "rprivate", access, "nosuid", "nodev"];
            json!({ "destination": path, "type": "bind", "source": source, "options": options })
        };
        for path in &covers {
            // Before 1.2 runc gives what is in memory the mode of what it covers, whatever is asked:
            // so first something that everybody may look into.
            mounts.push(bind(&self.empty, path, "ro"));
            mounts.push(tmpfs(path, "mode=755,size=64k,ro"));
        }
        mounts.push(bind(&self.software_dir, &self.software_dir, "ro"));
        mounts.push(bind(&self.runtime_dir, &self.runtime_dir, "rw"));
        Ok(mounts)
    }
}

/// Where a path leads from the root file system without what is mounted below it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reach {
    /// To what is there.
    There,
    /// Something is mounted here, on the way or at its end.
    Mounted(PathBuf),
    /// Nowhere.
    Nowhere,
}

/// Over which directories something empty is mounted: those that are hidden, and those below which
/// something `needed` would otherwise have no place.
fn covers(
    hidden: &[PathBuf],
    needed: &[&PathBuf],
    reach: impl Fn(&Path) -> io::Result<Reach>,
) -> io::Result<Vec<PathBuf>> {
    let mut covers: Vec<PathBuf> = Vec::new();
    let within = |covers: &[PathBuf], path: &Path| {
        let own = EMPTY.iter().map(|(own, _)| own).chain(&OWN).any(|own| path.starts_with(own));
        own || covers.iter().any(|cover| path.starts_with(cover))
    };
    let mut hidden: Vec<_> = hidden.iter().collect();
    hidden.sort();
    for path in hidden {
        if !within(&covers, path) && reach(path)? == Reach::There {
            covers.push(path.clone());
        }
    }
    for path in needed {
        if let (false, Reach::Mounted(at)) = (within(&covers, path), reach(path)?) {
            covers.push(at);
        }
    }
    Ok(covers)
}

fn reach(path: &Path) -> io::Result<Reach> {
    let mut way = PathBuf::from("/");
    let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    for part in path.components().filter(|part| matches!(part, Component::Normal(_))) {
        way.push(part);
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_IN_ROOT);
        match openat2(&root, way.strip_prefix("/").unwrap_or(&way), how) {
            Ok(_) => {}
            Err(Errno::EXDEV) => return Ok(Reach::Mounted(way)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Reach::Nowhere),
            // Nothing is taken for hidden that is not known to be.
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Reach::There)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(hidden: &[&str], needed: &[&str], mounted: &[&str], expected: &[&str]) {
        let reach = |path: &Path| {
            let at = mounted.iter().find(|at| path.starts_with(at));
            Ok(at.map_or(Reach::There, |at| Reach::Mounted(at.into())))
        };
        let hidden: Vec<PathBuf> = hidden.iter().map(PathBuf::from).collect();
        let needed: Vec<PathBuf> = needed.iter().map(PathBuf::from).collect();
        let needed: Vec<&PathBuf> = needed.iter().collect();
        let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
        assert_eq!(covers(&hidden, &needed, reach).unwrap(), expected);
    }

    #[test]
    fn what_is_hidden_is_covered_once_and_what_is_needed_has_a_place() {
        let state = "/var/lib/coracle";
        let native = ["/var/lib/coracle/native/software", "/var/lib/coracle/native/runtime/a"];
        // All on the root file system: the cover of the state hides all of it, and has room.
        check(&[state, "/var/lib/coracle/store"], &native, &[], &[state]);
        // The state is a file system of its own, which is left out: room is made where it begins.
        check(&[state], &native, &["/var/lib/coracle"], &["/var/lib/coracle"]);
        check(&[state], &native, &["/var"], &["/var"]);
        // Software of its own file system, elsewhere.
        check(
            &[state],
            &["/opt/native/software", "/opt/native/runtime/a"],
            &["/opt/native"],
            &[state, "/opt/native"],
        );
        // Where it is anyhow, nothing is needed.
        check(&[state], &["/opt/native/software"], &[], &[state]);
        // What is below /run is not there in the first place.
        check(&["/run/coracle"], &[], &[], &[]);
    }

    #[test]
    fn mounts_are_noticed_on_the_way() {
        assert_eq!(reach(Path::new("/")).unwrap(), Reach::There);
        assert_eq!(reach(Path::new("/proc/self")).unwrap(), Reach::Mounted("/proc".into()));
        assert_eq!(reach(Path::new("/nowhere/at/all")).unwrap(), Reach::Nowhere);
        assert!(NativeRoot::has_place(Path::new("/proc/self/status")));
        assert!(!NativeRoot::has_place(Path::new("/etc/no-such-file")));
    }

    #[test]
    fn directories_are_put_into_arguments_and_programs_are_the_artifacts() {
        let root = NativeRoot {
            artifact: "g:n:1".into(),
            root: "/".into(),
            artifact_dir: "/s/g/n/1".into(),
            software_dir: "/s".into(),
            runtime_dir: "/r/x".into(),
            hidden: Vec::new(),
            masked: Vec::new(),
            empty: "/e".into(),
        };
        assert_eq!(root.program("bin/run"), "/s/g/n/1/bin/run");
        assert_eq!(root.program("/usr/bin/python3"), "/usr/bin/python3");
        assert_eq!(root.text("--data=${runtime}/d"), "--data=/r/x/d");
        assert_eq!(root.text("${artifact}/a ${HOME}"), "/s/g/n/1/a ${HOME}");
    }
}
