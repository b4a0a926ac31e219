//! Images made from installed packages: busybox, the web server lighttpd, and the broker mosquitto
//! with its clients.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};

use super::{Builder, Compression, Image, Layer, Platform};
use crate::process::run;
use crate::{Result, installed};

const USERS: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
www-data:x:33:33:www-data:/var/www:/bin/false\n\
keeper:x:1234:4321:a user with its own group:/home/keeper:/bin/sh\n\
nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUPS: &[u8] = b"root:x:0:\nwww-data:x:33:\nextra:x:777:keeper\nkeepers:x:4321:\n\
nogroup:x:65534:\n";
const PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

/// The page that the lighttpd image serves begins with this.
pub const GREETING: &str = "Hello from Coracle";

/// lighttpd's configuration; `PORT` and `BIND` come from the environment. Without modules it
/// serves static files.
const LIGHTTPD: &str = r#"server.document-root = "/var/www/html"
server.port = env.PORT
server.bind = env.BIND
server.tag = "coracle"
server.modules = ()
server.feature-flags = ( "server.h2proto" => "disable" )
server.upload-dirs = ( "/tmp" )
index-file.names = ( "index.html" )
mimetype.assign = ( ".html" => "text/html; charset=utf-8", "" => "application/octet-stream" )
"#;

impl Layer {
    /// busybox with its links in `/bin`, `/etc/passwd` with the users root, www-data (33),
    /// keeper (1234, group 4321, also in 777) and nobody, `/tmp`, and a page in `/www`.
    pub fn busybox() -> Result<Self> {
        Self::busybox_of(&installed("busybox")?)
    }

    /// The same with another busybox, of any architecture; the links are those of ours.
    pub fn busybox_of(program: &Path) -> Result<Self> {
        let own = installed("busybox")?;
        let applets = run(Command::new(&own).arg("--list"), Duration::from_secs(10))?;
        let applets = String::from_utf8(applets).context("busybox --list is not UTF-8")?;
        let mut layer = base().host_file("/bin/busybox", program)?;
        for applet in applets.lines().filter(|name| *name != "busybox") {
            layer = layer.symlink(&format!("/bin/{applet}"), "busybox");
        }
        Ok(layer.file("/www/index.html", 0o644, b"busybox here\n"))
    }

    /// A program of this machine under another path, with the libraries that it needs.
    pub fn program(mut self, path: &str, source: &Path) -> Result<Self> {
        for library in shared_libraries([source.to_owned()].iter())? {
            self = self.host_file(library.to_str().context("path is not UTF-8")?, &library)?;
        }
        self.host_file(path, source)
    }
}

fn base() -> Layer {
    Layer::new()
        .dir("/tmp", 0o1777)
        .dir("/home/keeper", 0o755)
        .owned_by("/home/keeper", 1234, 4321)
        .file("/etc/passwd", 0o644, USERS)
        .file("/etc/group", 0o644, GROUPS)
}

impl Builder {
    /// What [`Image::busybox`] is built from, to vary: layer compression, platform,
    /// configuration, further layers.
    pub fn busybox(compression: Compression) -> Result<Self> {
        let builder = Self::new().layer(Layer::busybox()?, compression);
        Ok(builder.env(&[PATH]).cmd(&["sleep", "86400"]))
    }

    /// What [`Image::lighttpd`] is built from, with `version` on the page it serves.
    pub fn lighttpd(version: &str) -> Result<Self> {
        let program = installed("lighttpd")?;
        let modules = modules()?;
        let libraries = shared_libraries(modules.iter().chain([&program]))?;
        let same = |path: PathBuf| (path.clone(), path);
        let files = modules.into_iter().chain([program]).map(same).collect();
        let libraries = libraries.into_iter().map(same).collect();
        Ok(lighttpd(files, libraries, version)?.platform(Platform::here()))
    }

    /// The broker mosquitto, run as nobody with the configuration `/etc/mosquitto/mosquitto.conf`,
    /// which is not in it.
    pub fn mosquitto() -> Result<Self> {
        let builder = Self::new().layer(programs(base(), &["mosquitto"])?, Compression::Plain);
        let builder = builder.env(&[PATH]).user("nobody").entrypoint(&["/usr/sbin/mosquitto"]);
        Ok(builder.cmd(&["-c", "/etc/mosquitto/mosquitto.conf"]))
    }

    /// [`Builder::busybox`] with `mosquitto_sub` and `mosquitto_pub`.
    pub fn mosquitto_clients() -> Result<Self> {
        let clients = programs(Layer::new(), &["mosquitto_sub", "mosquitto_pub"])?;
        Ok(Self::busybox(Compression::Plain)?.layer(clients, Compression::Plain))
    }

    /// [`Builder::busybox`] with `curl`, which can talk over Unix sockets and look up names:
    /// busybox, linked statically, crashes where it would ask a name server.
    pub fn curl() -> Result<Self> {
        let curl = programs(Layer::new(), &["curl"])?;
        Ok(Self::busybox(Compression::Plain)?.layer(curl, Compression::Plain))
    }

    /// The same for another machine: `root` holds the unpacked package and the packages of its
    /// libraries for `platform`.
    pub fn lighttpd_in(root: &Path, platform: Platform, version: &str) -> Result<Self> {
        let program = root.join("usr/sbin/lighttpd");
        let libraries = needed_libraries(root, &program)?;
        let files = vec![(PathBuf::from("/usr/sbin/lighttpd"), program)];
        Ok(lighttpd(files, libraries, version)?.platform(platform))
    }
}

/// The layer with installed programs and the libraries that they need, where they are on this
/// machine.
fn programs(mut layer: Layer, names: &[&str]) -> Result<Layer> {
    let programs: Vec<PathBuf> = names.iter().map(|name| installed(name)).collect::<Result<_>>()?;
    for path in shared_libraries(programs.iter())?.iter().chain(&programs) {
        layer = layer.host_file(path.to_str().context("path is not UTF-8")?, path)?;
    }
    Ok(layer)
}

/// Files of an image: where they are in it, and where they come from.
type Files = Vec<(PathBuf, PathBuf)>;

fn lighttpd(files: Files, libraries: Files, version: &str) -> Result<Builder> {
    let add = |mut layer: Layer, files: Files| -> Result<Layer> {
        for (path, source) in files {
            let path = path.to_str().context("path is not UTF-8")?;
            layer = layer.host_file(path, &source)?;
        }
        Ok(layer)
    };
    let page = format!("{GREETING} ({version})\n");
    let server = add(Layer::new(), files)?
        .file("/etc/lighttpd/coracle.conf", 0o644, LIGHTTPD.as_bytes())
        .file("/var/www/html/index.html", 0o644, page.as_bytes());
    Ok(Builder::new()
        .layer(add(base(), libraries)?, Compression::Gzip)
        .layer(server, Compression::Gzip)
        .env(&[PATH, "PORT=8080", "BIND=127.0.0.1"])
        .user("www-data")
        .workdir("/var/www")
        .entrypoint(&["/usr/sbin/lighttpd"])
        .cmd(&["-D", "-f", "/etc/lighttpd/coracle.conf"]))
}

impl Image {
    /// A small image of one gzip layer; sleeps for a day unless told otherwise. Built once in
    /// a process.
    pub fn busybox() -> Result<Self> {
        static ONCE: OnceLock<std::result::Result<Image, String>> = OnceLock::new();
        once(&ONCE, || Builder::busybox(Compression::Gzip)?.build())
    }

    /// A web server of two layers, run as www-data by name. It serves a page that begins with
    /// [`GREETING`] on `PORT` (8080) of `BIND` (127.0.0.1), both from the environment. Built
    /// once in a process.
    pub fn lighttpd() -> Result<Self> {
        static ONCE: OnceLock<std::result::Result<Image, String>> = OnceLock::new();
        once(&ONCE, || Builder::lighttpd("version 1")?.build())
    }
}

fn once(
    cell: &OnceLock<std::result::Result<Image, String>>,
    build: impl FnOnce() -> Result<Image>,
) -> Result<Image> {
    let built = cell.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(|message| anyhow!(message))
}

/// lighttpd's own modules, as its package installs them.
fn modules() -> Result<Vec<PathBuf>> {
    let listed = run(Command::new("dpkg-query").args(["-L", "lighttpd"]), Duration::from_secs(30));
    let listed = String::from_utf8(listed.context("is the package lighttpd installed?")?)?;
    let paths = listed.lines().filter(|line| line.ends_with(".so")).map(PathBuf::from);
    Ok(paths.filter(|path| path.is_file()).collect())
}

/// The libraries, and the loader, that the programs need, as `ldd` finds them.
fn shared_libraries<'a>(programs: impl Iterator<Item = &'a PathBuf>) -> Result<BTreeSet<PathBuf>> {
    let mut command = Command::new("ldd");
    command.args(programs);
    let text = String::from_utf8(run(&mut command, Duration::from_secs(30))?)?;
    ensure!(!text.contains("not found"), "a library is missing: {text}");
    let lines = text.lines().filter(|line| line.starts_with(char::is_whitespace));
    let paths = lines.filter_map(|line| line.split_whitespace().find(|w| w.starts_with('/')));
    Ok(paths.map(|path| Path::new(path).to_owned()).collect())
}

/// The loader and the libraries that a program of any architecture needs, as `readelf` (binutils)
/// lists them, found below `root`.
fn needed_libraries(root: &Path, program: &Path) -> Result<Files> {
    let mut wanted = vec![program.to_owned()];
    let mut found = BTreeMap::new();
    while let Some(object) = wanted.pop() {
        let mut command = Command::new("readelf");
        command.args(["--wide", "--program-headers", "--dynamic"]).arg(&object);
        let text = String::from_utf8(run(&mut command, Duration::from_secs(30))?)?;
        for line in text.lines() {
            let loader = line.split("program interpreter: ").nth(1);
            let library = line.contains("(NEEDED)").then(|| line.split('[').nth(1)).flatten();
            let Some(name) = loader.or(library).and_then(|rest| rest.split(']').next()) else {
                continue;
            };
            let file = Path::new(name).file_name().context("a library without a name")?;
            let source = find_library(root, file)
                .with_context(|| format!("no {name} below {}", root.display()))?;
            let inside = match loader {
                Some(_) => PathBuf::from(name),
                None => Path::new("/").join(source.strip_prefix(root)?),
            };
            if found.insert(inside, source.clone()).is_none() {
                wanted.push(source);
            }
        }
    }
    Ok(found.into_iter().collect())
}

fn find_library(root: &Path, file: &OsStr) -> Option<PathBuf> {
    let lib = root.join("usr/lib");
    let multiarch = std::fs::read_dir(&lib).into_iter().flatten().flatten();
    let dirs = multiarch.map(|entry| entry.path()).chain([lib.clone(), root.join("usr/lib64")]);
    dirs.map(|dir| dir.join(file)).find(|path| path.is_file())
}
