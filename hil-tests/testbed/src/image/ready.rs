//! Images made from installed packages: busybox, and the web server lighttpd.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};

use super::{Builder, Compression, Image, Layer};
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
        let program = installed("busybox")?;
        let applets = run(Command::new(&program).arg("--list"), Duration::from_secs(10))?;
        let applets = String::from_utf8(applets).context("busybox --list is not UTF-8")?;
        let mut layer = base().host_file("/bin/busybox", &program)?;
        for applet in applets.lines().filter(|name| *name != "busybox") {
            layer = layer.symlink(&format!("/bin/{applet}"), "busybox");
        }
        Ok(layer.file("/www/index.html", 0o644, b"busybox here\n"))
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
        let mut libraries = base();
        let objects = modules.iter().chain([&program]);
        for library in shared_libraries(objects)? {
            let path = library.to_str().context("library path is not UTF-8")?.to_owned();
            libraries = libraries.host_file(&path, &library)?;
        }
        let mut server = Layer::new().host_file("/usr/sbin/lighttpd", &program)?;
        for module in &modules {
            let path = module.to_str().context("module path is not UTF-8")?;
            server = server.host_file(path, module)?;
        }
        let page = format!("{GREETING} ({version})\n");
        let server = server.file("/etc/lighttpd/coracle.conf", 0o644, LIGHTTPD.as_bytes()).file(
            "/var/www/html/index.html",
            0o644,
            page.as_bytes(),
        );
        Ok(Self::new()
            .layer(libraries, Compression::Gzip)
            .layer(server, Compression::Gzip)
            .env(&[PATH, "PORT=8080", "BIND=127.0.0.1"])
            .user("www-data")
            .workdir("/var/www")
            .entrypoint(&["/usr/sbin/lighttpd"])
            .cmd(&["-D", "-f", "/etc/lighttpd/coracle.conf"]))
    }
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
