//! Runs a network plugin, `iptables` or `nft` as a child: with a clean environment, a limit on its time
//! and one on what it says. Nothing here builds a shell.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::error::NetworkError;

/// Longest time for one call. A plugin waits for locks of others, and for an address at most.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(30);

/// How often a lock is tried for: every 20 ms up to the longest time of a program.
const LOCK_TRIES: u32 = 1600;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Most that a plugin may say, in bytes.
pub(super) const OUTPUT_LIMIT: usize = 64 * 1024;

/// Where programs are looked for, by plugins too.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a child said, and how it ended.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: ExitStatus,
    pub(super) out: Vec<u8>,
    pub(super) err: Vec<u8>,
}

/// A program by its name.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    PATH.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

/// Runs it to its end.
///
/// # Errors
/// It cannot be started; it takes or says too much, and was killed with all its children.
pub(super) async fn run<K: AsRef<OsStr>, V: AsRef<OsStr>>(
    program: &Path,
    arguments: &[&str],
    environment: &[(K, V)],
    input: Stdio,
    (time_limit, output_limit): (Duration, usize),
) -> io::Result<Said> {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .current_dir("/")
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = child.id();
    match tokio::time::timeout(time_limit, listen(&mut child, output_limit)).await {
        Ok(Ok(said)) => Ok(said),
        Ok(Err(error)) => {
            kill(&mut child, group).await;
            Err(error)
        }
        Err(_) => {
            kill(&mut child, group).await;
            let text = format!("took longer than {} s and was killed", time_limit.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
    }
}

/// An input that is all there before the program starts.
pub(super) fn input_of(text: &[u8]) -> io::Result<Stdio> {
    let name = c"coracle-input";
    let memory = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(text)?;
    file.rewind()?;
    Ok(file.into())
}

/// An input that is locked until nobody has it open any more: by then the program has ended, also
/// when the agent died meanwhile. Nobody else may have it.
pub(super) fn locked_input(path: &Path, text: &[u8]) -> Result<Flock<File>, NetworkError> {
    let failed = |doing| NetworkError::file(doing, path);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("create"))?;
    let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| failed("lock")(errno.into()))?;
    file.write_all(text).map_err(failed("write"))?;
    file.rewind().map_err(failed("rewind"))?;
    Ok(file)
}

/// Waits until no program has this input that an agent before us started.
pub(super) async fn wait_for_leftover(path: &Path) -> Result<(), NetworkError> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.map_err(NetworkError::file("open", path))?,
    };
    for _ in 0..LOCK_TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => return Ok(()),
            Err((same, Errno::EWOULDBLOCK)) => file = same,
            Err((_, errno)) => return Err(NetworkError::file("lock", path)(errno.into())),
        }
        tokio::time::sleep(LOCK_PAUSE).await;
    }
    let late = io::Error::other("a program that an earlier agent started still runs");
    Err(NetworkError::file("lock", path)(late))
}

async fn listen(child: &mut Child, limit: usize) -> io::Result<Said> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (out, err, status) = tokio::try_join!(read(out, limit), read(err, limit), child.wait())?;
    Ok(Said { status, out, err })
}

async fn read(pipe: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(limit as u64 + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() > limit {
        return Err(io::Error::other(format!("said more than {limit} bytes and was killed")));
    }
    Ok(bytes)
}

/// Kills the child and what it started.
async fn kill(child: &mut Child, group: Option<u32>) {
    if let Some(group) = group.and_then(|group| i32::try_from(group).ok()) {
        if let Err(error) = killpg(Pid::from_raw(group), Signal::SIGKILL) {
            tracing::debug!(%error, "a network plugin's processes ended by themselves");
        }
    }
    if let Err(error) = child.wait().await {
        tracing::warn!(%error, "a network plugin cannot be waited for");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str, limits: (Duration, usize)) -> io::Result<Said> {
        let none: [(&str, &str); 0] = [];
        run(Path::new("/bin/sh"), &["-c", script], &none, Stdio::null(), limits).await
    }

    #[tokio::test]
    async fn a_child_is_heard_and_has_a_clean_environment() {
        let limits = (TIME_LIMIT, 100);
        let said = shell("echo \"$HOME$PATH\"; echo no >&2; exit 3", limits).await.unwrap();
        assert_eq!(said.out, format!("{PATH}\n").into_bytes());
        assert_eq!((said.err.as_slice(), said.status.code()), (&b"no\n"[..], Some(3)));
    }

    #[tokio::test]
    async fn a_child_that_takes_too_long_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; wait", mark.display());
        let error = shell(&script, (Duration::from_millis(300), 100)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let pid: i32 = std::fs::read_to_string(mark).unwrap().trim().parse().unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let dead = |stat: &str| stat.is_empty() || stat.contains(") Z ");
        for _ in 0..100 {
            if dead(&state()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the grandchild lives: {}", state());
    }

    #[tokio::test]
    async fn a_child_that_says_too_much_is_killed() {
        let error = shell("while :; do echo x; done", (TIME_LIMIT, 1000)).await.unwrap_err();
        assert!(error.to_string().contains("more than 1000 bytes"), "{error}");
    }
}
