//! Variables whose values containerd must not have: it keeps specifications on the disk.
//!
//! The specification carries [`PLACEHOLDER`] instead of the value. containerd's shim is told to run
//! this program under the name `coracle-runc` in place of `runc` (see [`runtime_options`]). On
//! `create` it puts the values into `config.json` of the bundle, which is in memory; on `exec` (a
//! probe, a hook) it hands over a copy of what is to be run, with the values, in memory as well. Then
//! it becomes the real `runc`; every other call is passed on as it is. Only containers with such
//! variables take this way.
//!
//! In: `RUNTIME_DIR/pods/REPLICA/CONTAINER.env`, written by [`crate::mounts`]. Out: the bundle's
//! `config.json`, or a nameless file. Nothing here is async, and nothing is kept.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use coracle_core::name::{ContainerName, WorkloadName};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::statfs;
use prost::Message;
use prost_types::Any;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

use crate::file_system::is_memory;

/// What a specification has in place of a hidden value.
pub const PLACEHOLDER: &str = "(hidden by coracle)";

/// The name under which this program is the wrapper.
pub const WRAPPER: &str = "coracle-runc";

/// The program that it becomes, looked for in `PATH`.
const RUNC: &str = "runc";
/// Options of runc that take a value in the next argument.
const WITH_VALUE: [&str; 12] = [
    "root",
    "log",
    "log-format",
    "criu",
    "rootless",
    "bundle",
    "b",
    "console-socket",
    "pid-file",
    "preserve-fds",
    PROCESS,
    "p",
];
/// The option of `exec` that names a file with the process.
const PROCESS: &str = "process";

/// Values of variables by name. Wiped from memory when dropped; never shown.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HiddenVariables(BTreeMap<String, String>);

impl HiddenVariables {
    /// Adds one.
    pub fn add(&mut self, variable: &str, mut value: Zeroizing<String>) {
        if let Some(mut before) = self.0.insert(variable.to_owned(), std::mem::take(&mut *value)) {
            before.zeroize();
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As they are written to the file.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Room for all of it, so that no copy is left behind by growing; JSON makes at most six
        // characters of one byte.
        let room: usize =
            self.0.iter().map(|(name, value)| 6 * (name.len() + value.len()) + 8).sum();
        let mut bytes = Zeroizing::new(Vec::with_capacity(room + 8));
        serde_json::to_writer(&mut *bytes, self).expect("texts are JSON");
        bytes
    }
}

impl Drop for HiddenVariables {
    fn drop(&mut self) {
        self.0.values_mut().for_each(Zeroize::zeroize);
    }
}

impl fmt::Debug for HiddenVariables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HiddenVariables").field(&self.0.keys()).finish()
    }
}

/// Name of the file with a container's hidden variables.
pub fn file_name(container: &ContainerName) -> String {
    format!("{container}.env")
}

/// Makes the wrapper: a link to this program in `RUNTIME_DIR/bin`. Gives its path.
///
/// # Errors
/// It cannot be made.
pub fn install(runtime_dir: &Path) -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    // The kernel says so of a program that was replaced while it runs.
    let program = match program.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(path) => PathBuf::from(path),
        None => program,
    };
    let bin = runtime_dir.join("bin");
    let path = bin.join(WRAPPER);
    if fs::read_link(&path).is_ok_and(|there| there == program) {
        return Ok(path);
    }
    fs::create_dir_all(&bin)?;
    let new = bin.join(format!(".{WRAPPER}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(&program, &new)?;
    fs::rename(&new, &path)?;
    Ok(path)
}

/// `containerd.runc.v1.Options`, as the shim `io.containerd.runc.v2` takes them
/// (`api/types/runc/options/oci.proto`, up to 1.7 `runtime/v2/runc/options/oci.proto`).
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
}

/// What a container's record says of its runtime so that the shim runs the wrapper.
pub fn runtime_options(wrapper: &Path) -> Any {
    let options = RuncOptions { binary_name: wrapper.display().to_string() };
    Any { type_url: "containerd.runc.v1.Options".into(), value: options.encode_to_vec() }
}

/// If this program was called as the wrapper: becomes runc, and gives an exit code only if it
/// cannot. What is wrong goes to runc's log, where the shim looks for it.
pub fn called_as_wrapper() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let program = PathBuf::from(args.next()?);
    if program.file_name() != Some(OsStr::new(WRAPPER)) {
        return None;
    }
    let mut args: Vec<OsString> = args.collect();
    let call = Call::of(&args);
    let trouble = match call.prepare(&program, &mut args) {
        // Resets what Rust's start changed of the signals, too.
        Ok(_process) => format!("cannot run {RUNC}: {}", Command::new(RUNC).args(&args).exec()),
        Err(trouble) => trouble,
    };
    call.complain(&format!("{WRAPPER}: {trouble}"));
    Some(ExitCode::FAILURE)
}

/// The arguments of runc, as far as they matter here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    command: Option<String>,
    bundle: Option<PathBuf>,
    log: Option<PathBuf>,
    /// The file with the process, and which argument says so.
    process: Option<(usize, PathBuf)>,
    /// The last argument that is no option.
    id: Option<String>,
}

impl Call {
    fn of(args: &[OsString]) -> Self {
        let mut call = Self::default();
        let mut args = args.iter().enumerate();
        while let Some((mut at, arg)) = args.next() {
            let text = arg.to_string_lossy();
            let Some(option) = text.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                if call.command.is_none() {
                    call.command = Some(text.into_owned());
                } else {
                    call.id = Some(text.into_owned());
                }
                continue;
            };
            let option = option.strip_prefix('-').unwrap_or(option);
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(OsString::from(value))),
                None if WITH_VALUE.contains(&option) => {
                    at += 1;
                    (option, args.next().map(|(_, value)| value.clone()))
                }
                None => (option, None),
            };
            match name {
                "bundle" | "b" => call.bundle = value.map(PathBuf::from),
                PROCESS | "p" => call.process = value.map(|value| (at, value.into())),
                "log" => call.log = value.map(PathBuf::from),
                _ => {}
            }
        }
        call
    }

    /// Before `create`, puts the hidden values into the bundle; before `exec`, into a file that it
    /// gives and names in the arguments, and that lasts as long as this process.
    fn prepare(&self, program: &Path, args: &mut [OsString]) -> Result<Option<OwnedFd>, String> {
        let command = self.command.as_deref();
        if !matches!(command, Some("create" | "exec")) {
            return Ok(None);
        }
        let pods = program
            .parent()
            .and_then(Path::parent)
            .map(|dir| dir.join("pods"))
            .ok_or("called by a name without a directory")?;
        let id = self.id.as_deref().ok_or("no container is named")?;
        match (command, &self.process) {
            (Some("create"), _) => {
                let bundle = self.bundle.clone().unwrap_or_else(|| PathBuf::from("."));
                fill(&bundle, &pods, id).map(|()| None)
            }
            (_, Some((at, process))) => {
                let Some(file) = filled(process, &pods, id)? else { return Ok(None) };
                args[*at] = self.says(&args[*at], &file);
                Ok(Some(file))
            }
            _ => Ok(None),
        }
    }

    /// The argument that names a file, made to name this one.
    fn says(&self, argument: &OsStr, file: &OwnedFd) -> OsString {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        match argument.to_string_lossy().split_once('=') {
            Some((option, _)) if option.starts_with('-') => format!("{option}={path}").into(),
            _ => path.into(),
        }
    }

    fn complain(&self, message: &str) {
        // Whoever closed standard error does not want it.
        drop(writeln!(io::stderr(), "{message}"));
        let Some(log) = &self.log else { return };
        let line = serde_json::json!({ "level": "error", "msg": message });
        let written = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(log)
            .and_then(|mut log| writeln!(log, "{line}"));
        // There is nobody else to tell.
        drop(written);
    }
}

/// Puts the hidden values of the container `id` into its bundle's `config.json`.
fn fill(bundle: &Path, pods: &Path, id: &str) -> Result<(), String> {
    let config = bundle.join("config.json");
    let text = fs::read(&config).map_err(|e| format!("cannot read {}: {e}", config.display()))?;
    let mut spec: Value = serde_json::from_slice(&text)
        .map_err(|e| format!("{} is not a specification: {e}", config.display()))?;
    let check = || require_memory(bundle);
    if !fill_in(spec.pointer_mut("/process/env"), pods, id, check)? {
        return Ok(());
    }
    let new = bundle.join(".config.json.new");
    replace(&new, &config, &spec).map_err(|e| format!("cannot write {}: {e}", config.display()))
}

/// A process for the container `id` with its hidden values, in a file without a name; `None` if
/// there are none.
fn filled(process: &Path, pods: &Path, id: &str) -> Result<Option<OwnedFd>, String> {
    let text = fs::read(process).map_err(|e| format!("cannot read {}: {e}", process.display()))?;
    let mut value: Value = serde_json::from_slice(&text)
        .map_err(|e| format!("{} is not a process: {e}", process.display()))?;
    if !fill_in(value.get_mut("env"), pods, id, || Ok(()))? {
        return Ok(None);
    }
    let bytes = serde_json::to_vec(&value).map(Zeroizing::new).map_err(io::Error::other);
    let written = bytes.and_then(|bytes| {
        // Inherited by runc, which closes it before the command is run.
        let mut file = File::from(memfd_create(c"process", MFdFlags::empty())?);
        file.write_all(&bytes)?;
        Ok(file.into())
    });
    written.map(Some).map_err(|e| format!("cannot keep a process in memory: {e}"))
}

/// Puts the hidden values of the container `id` in the places of their placeholders; false if there
/// are none. `check` says whether they may be put there.
fn fill_in(
    env: Option<&mut Value>,
    pods: &Path,
    id: &str,
    check: impl FnOnce() -> Result<(), String>,
) -> Result<bool, String> {
    let env = env.and_then(Value::as_array_mut);
    let mut hidden: Vec<&mut String> = env
        .into_iter()
        .flatten()
        .filter_map(|entry| match entry {
            Value::String(text) if is_hidden(text) => Some(text),
            _ => None,
        })
        .collect();
    if hidden.is_empty() {
        return Ok(false);
    }
    check()?;
    let file = values_of(pods, id).ok_or_else(|| format!("container {id:?} is not one of ours"))?;
    let text = fs::read(&file).map(Zeroizing::new);
    let text = text.map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    let values: HiddenVariables = serde_json::from_slice(&text)
        .map_err(|_| format!("{} does not hold variables", file.display()))?;
    for entry in &mut hidden {
        let name = entry.split_once('=').map_or("", |(name, _)| name).to_owned();
        let value = values.0.get(&name);
        let value = value.ok_or_else(|| format!("{} has no {name}", file.display()))?;
        **entry = format!("{name}={value}");
    }
    Ok(true)
}

fn is_hidden(entry: &str) -> bool {
    entry.split_once('=').is_some_and(|(_, value)| value == PLACEHOLDER)
}

/// `WORKLOAD.INDEX.CONTAINER`, and nothing that could lead elsewhere.
fn values_of(pods: &Path, id: &str) -> Option<PathBuf> {
    let (replica, container) = id.rsplit_once('.')?;
    let (workload, index) = replica.rsplit_once('.')?;
    let container = ContainerName::parse(container).ok()?;
    let workload = WorkloadName::parse(workload).ok()?;
    let index: u32 = index.parse().ok()?;
    Some(pods.join(format!("{workload}.{index}")).join(file_name(&container)))
}

fn require_memory(bundle: &Path) -> Result<(), String> {
    let kind = statfs(bundle)
        .map_err(|error| format!("cannot look at {}: {error}", bundle.display()))?
        .filesystem_type();
    if is_memory(kind) {
        return Ok(());
    }
    Err(format!(
        "{} is not in memory, so secrets would reach a disk; set `state` of containerd's \
         configuration to a directory on tmpfs, such as /run/containerd",
        bundle.display()
    ))
}

/// Whole or not at all, and readable by root alone from now on.
fn replace(new: &Path, path: &Path, spec: &Value) -> io::Result<()> {
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    let bytes = Zeroizing::new(serde_json::to_vec(spec)?);
    file.write_all(&bytes)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn call(args: &str) -> Call {
        Call::of(&args.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_shims_calls_are_understood() {
        let create = call(
            "--root /run/containerd/runc/coracle --log /b/log.json --log-format json create \
             --bundle /b --pid-file /b/init.pid web.0.main",
        );
        let expected = Call {
            command: Some("create".into()),
            bundle: Some("/b".into()),
            log: Some("/b/log.json".into()),
            process: None,
            id: Some("web.0.main".into()),
        };
        assert_eq!(create, expected);
        let other = call(
            "--systemd-cgroup --rootless=true --log=/b/log.json create -b /b --no-pivot web.0.main",
        );
        assert_eq!(other, expected);
        let exec = call(
            "--log /b/log.json --log-format json exec --process /tmp/p1 --detach --pid-file /b/1.pid \
             web.0.main",
        );
        assert_eq!(exec.command.as_deref(), Some("exec"));
        assert_eq!(exec.process, Some((6, "/tmp/p1".into())));
        assert_eq!(exec.id.as_deref(), Some("web.0.main"));
        assert_eq!(call("exec -p=/tmp/p1 x").process, Some((1, "/tmp/p1".into())));
        assert_eq!(call("--root create kill web.0.main 9").command.as_deref(), Some("kill"));
        assert_eq!(call("--version").command, None);
        assert_eq!(call("").command, None);
        assert_eq!(call("-").command.as_deref(), Some("-"));
    }

    #[test]
    fn options_are_what_the_shim_decodes() {
        let any = runtime_options(Path::new("/run/x"));
        assert_eq!(any.type_url, "containerd.runc.v1.Options");
        assert_eq!(any.value, b"\x32\x06/run/x");
    }

    struct Pod {
        place: tempfile::TempDir,
    }

    impl Pod {
        fn new(env: &[&str], values: &[(&str, &str)]) -> Self {
            // In memory, as it must be.
            let place = tempfile::tempdir_in("/dev/shm").unwrap();
            let mut hidden = HiddenVariables::default();
            for (name, value) in values {
                hidden.add(name, Zeroizing::new((*value).to_owned()));
            }
            let pod = place.path().join("pods/web.0");
            fs::create_dir_all(&pod).unwrap();
            fs::write(pod.join("main.env"), hidden.encode()).unwrap();
            let bundle = place.path().join("bundle");
            fs::create_dir(&bundle).unwrap();
            let spec = serde_json::json!({ "process": { "env": env, "rlimits": [u64::MAX] } });
            fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
            Self { place }
        }

        fn fill(&self, id: &str) -> Result<Vec<String>, String> {
            let bundle = self.place.path().join("bundle");
            fill(&bundle, &self.place.path().join("pods"), id)?;
            let spec: Value =
                serde_json::from_slice(&fs::read(bundle.join("config.json")).unwrap()).unwrap();
            assert_eq!(spec["process"]["rlimits"][0], u64::MAX);
            Ok(serde_json::from_value(spec["process"]["env"].clone()).unwrap())
        }
    }

    #[test]
    fn values_take_the_place_of_placeholders() {
        let hidden = format!("PW={PLACEHOLDER}");
        let pod = Pod::new(&["A=b", &hidden, "Z="], &[("PW", "a=b\n\"ü"), ("OTHER", "x")]);
        assert_eq!(pod.fill("web.0.main").unwrap(), ["A=b", "PW=a=b\n\"ü", "Z="]);
        let config = pod.place.path().join("bundle/config.json");
        assert_eq!(fs::metadata(config).unwrap().permissions().mode() & 0o777, 0o600);
        // A second time there is nothing to do.
        assert_eq!(pod.fill("web.0.main").unwrap(), ["A=b", "PW=a=b\n\"ü", "Z="]);
        let plain = Pod::new(&["A=b"], &[]);
        assert_eq!(plain.fill("anything").unwrap(), ["A=b"]);
    }

    #[test]
    fn a_process_gets_them_without_a_file_that_has_a_name() {
        let pod = Pod::new(&[], &[("PW", "s3cret")]);
        let process = pod.place.path().join("process");
        let write = |env: &[&str]| {
            let value = serde_json::json!({ "args": ["check"], "env": env });
            fs::write(&process, value.to_string()).unwrap();
        };
        let program = pod.place.path().join("bin").join(WRAPPER);
        let said = format!("--log /l exec --process={} --detach web.0.main", process.display());
        let prepare = || {
            let mut args: Vec<_> = said.split_whitespace().map(OsString::from).collect();
            let file = Call::of(&args).prepare(&program, &mut args)?;
            Ok::<_, String>((file, args[3].to_string_lossy().into_owned()))
        };
        write(&["A=b"]);
        let (file, argument) = prepare().unwrap();
        assert!(file.is_none() && argument.ends_with("/process"), "{argument}");
        write(&["A=b", &format!("PW={PLACEHOLDER}")]);
        let (file, argument) = prepare().unwrap();
        let path = argument.strip_prefix("--process=").unwrap();
        let made: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let expected = serde_json::json!({ "args": ["check"], "env": ["A=b", "PW=s3cret"] });
        assert_eq!(made, expected);
        drop(file);
        assert!(!fs::read_to_string(&process).unwrap().contains("s3cret"));
        write(&[&format!("OTHER={PLACEHOLDER}")]);
        let error = prepare().unwrap_err();
        assert!(error.contains("has no OTHER") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn a_container_without_its_values_is_not_made() {
        let hidden = format!("PW={PLACEHOLDER}");
        let pod = Pod::new(&[&hidden], &[("OTHER", "s3cret")]);
        for (id, said) in [
            ("web.0.main", "has no PW"),
            ("web.1.main", "cannot read"),
            ("web.0.other", "cannot read"),
            ("web.0", "not one of ours"),
            ("../x.0.main", "not one of ours"),
            ("web.0.ma/in", "not one of ours"),
        ] {
            let error = pod.fill(id).unwrap_err();
            assert!(error.contains(said) && !error.contains("s3cret"), "{id}: {error}");
        }
        fs::write(pod.place.path().join("pods/web.0/main.env"), "s3cret").unwrap();
        let error = pod.fill("web.0.main").unwrap_err();
        assert!(error.contains("does not hold") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn a_bundle_on_a_disk_is_refused() {
        let exe = std::env::current_exe().unwrap();
        let on_disk = tempfile::tempdir_in(exe.parent().unwrap()).unwrap();
        if require_memory(on_disk.path()).is_ok() {
            return; // Everything is in memory here.
        }
        let error = require_memory(on_disk.path()).unwrap_err();
        assert!(error.contains("is not in memory"), "{error}");
    }

    #[test]
    fn nothing_hidden_is_shown() {
        let mut hidden = HiddenVariables::default();
        hidden.add("PW", Zeroizing::new("hunter2".into()));
        assert_eq!(format!("{hidden:?}"), r#"HiddenVariables(["PW"])"#);
    }

    #[test]
    fn the_wrapper_is_made_and_made_anew() {
        let place = tempfile::tempdir().unwrap();
        let path = install(place.path()).unwrap();
        assert_eq!(path, place.path().join("bin/coracle-runc"));
        assert_eq!(fs::read_link(&path).unwrap(), std::env::current_exe().unwrap());
        fs::remove_file(&path).unwrap();
        symlink("/elsewhere", &path).unwrap();
        install(place.path()).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), std::env::current_exe().unwrap());
    }
}
