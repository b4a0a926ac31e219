//! A test certificate authority. In: a directory. Out: P-256 certificates and keys as PEM files
//! made by the `openssl` command, valid and, for bad-input tests, not.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};

use crate::Result;
use crate::process::run;

const LIMIT: Duration = Duration::from_secs(30);
const LONG: (&str, &str) = ("20200101000000Z", "20491231235959Z");
const PAST: (&str, &str) = ("20200101000000Z", "20200201000000Z");
const FUTURE: (&str, &str) = ("20490101000000Z", "20491231235959Z");

/// A certificate with its private key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub cert: PathBuf,
    /// The private key, PKCS #8, mode 0600.
    pub key: PathBuf,
}

/// A certificate authority, its server identity and whatever it is asked to sign.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    server: Identity,
    /// `openssl ca` keeps an index file: one at a time.
    signing: Mutex<()>,
}

impl Pki {
    /// Makes the authority in `dir`, which is created, and a server certificate for
    /// `localhost` and 127.0.0.1.
    pub fn new(dir: &Path) -> Result<Self> {
        Self::with_addresses(dir, &[])
    }

    /// The same, with further IP addresses in the server's certificate: those by which machines
    /// other than this one reach it.
    pub fn with_addresses(dir: &Path, addresses: &[IpAddr]) -> Result<Self> {
        make_authority(dir, "Coracle test CA", addresses)?;
        make_authority(&dir.join("foreign"), "Somebody else's CA", &[])?;
        let server = issue(dir, "server", "localhost", "server", LONG)?;
        Ok(Self { dir: dir.to_owned(), server, signing: Mutex::new(()) })
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// The server's identity.
    pub fn server(&self) -> &Identity {
        &self.server
    }

    /// A client certificate with `name` (a gateway id, or `fleet`) as its common name. Asked
    /// again for the same name, the same one.
    pub fn client(&self, name: &str) -> Result<Identity> {
        self.issue_once(&self.dir, name, LONG)
    }

    /// A client certificate for `name`, a DNS name, as an alternative name of its subject.
    pub fn named_client(&self, name: &str) -> Result<Identity> {
        let known = identity(&self.dir, &format!("{name}.named"));
        let _held = self.signing.lock().map_err(|_| anyhow!("a signer panicked"))?;
        if known.cert.exists() {
            return Ok(known);
        }
        let file = format!("{name}.named");
        let section = CONFIGURATION.split("[client]").nth(1).context("no client section")?;
        let text = format!("[named_client]{section}subjectAltName = DNS:{name}\n");
        std::fs::write(self.dir.join(format!("{file}.cnf")), text)?;
        make_key(&self.dir, &format!("{file}.key"))?;
        request(&self.dir, &file, name)?;
        let (csr, out) = (format!("{file}.csr"), format!("{file}.pem"));
        let extensions = format!("{file}.cnf");
        let args = ["ca", "-batch", "-notext", "-config", "ca.cnf", "-extfile", &extensions];
        let rest = ["-extensions", "named_client", "-startdate", LONG.0, "-enddate", LONG.1];
        openssl(&self.dir, &[&args[..], &rest, &["-in", &csr, "-out", &out]].concat())?;
        Ok(known)
    }

    /// A client certificate that has expired.
    pub fn expired(&self, name: &str) -> Result<Identity> {
        self.issue_once(&self.dir, &format!("{name}.expired"), PAST)
    }

    /// A client certificate that is not valid yet.
    pub fn not_yet_valid(&self, name: &str) -> Result<Identity> {
        self.issue_once(&self.dir, &format!("{name}.future"), FUTURE)
    }

    /// A client certificate signed by another authority.
    pub fn foreign(&self, name: &str) -> Result<Identity> {
        self.issue_once(&self.dir.join("foreign"), name, LONG)
    }

    /// The certificate of the authority that signs [`foreign`](Self::foreign) ones.
    pub fn foreign_ca(&self) -> PathBuf {
        self.dir.join("foreign/ca.pem")
    }

    fn issue_once(&self, dir: &Path, file: &str, validity: (&str, &str)) -> Result<Identity> {
        let _held = self.signing.lock().map_err(|_| anyhow!("a signer panicked"))?;
        let name = file.trim_end_matches(".expired").trim_end_matches(".future");
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        ensure!(!name.is_empty() && name.chars().all(plain), "not a plain name: {name:?}");
        let known = identity(dir, file);
        if known.cert.exists() { Ok(known) } else { issue(dir, file, name, "client", validity) }
    }
}

fn identity(dir: &Path, file: &str) -> Identity {
    let path = |ending| dir.join(format!("{file}.{ending}"));
    Identity { cert: path("pem"), key: path("key") }
}

fn openssl(dir: &Path, args: &[&str]) -> Result<()> {
    let mut command = Command::new("openssl");
    command.current_dir(dir).args(args).env_remove("OPENSSL_CONF");
    run(&mut command, LIMIT).map(drop)
}

fn make_key(dir: &Path, file: &str) -> Result<()> {
    let curve = "ec_paramgen_curve:P-256";
    openssl(dir, &["genpkey", "-algorithm", "EC", "-pkeyopt", curve, "-out", file])
}

fn make_authority(dir: &Path, name: &str, addresses: &[IpAddr]) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let names: String = addresses.iter().map(|address| format!(",IP:{address}")).collect();
    std::fs::write(dir.join("ca.cnf"), CONFIGURATION.replace("@ADDRESSES@", &names))?;
    std::fs::write(dir.join("index.txt"), "")?;
    make_key(dir, "ca.key")?;
    request(dir, "ca", name)?;
    sign(dir, "ca", "authority", LONG, true)
}

fn issue(
    dir: &Path,
    file: &str,
    name: &str,
    extensions: &str,
    validity: (&str, &str),
) -> Result<Identity> {
    make_key(dir, &format!("{file}.key"))?;
    request(dir, file, name)?;
    sign(dir, file, extensions, validity, false)?;
    Ok(identity(dir, file))
}

fn request(dir: &Path, file: &str, name: &str) -> Result<()> {
    let (key, out) = (format!("{file}.key"), format!("{file}.csr"));
    let subject = format!("/CN={name}");
    let config = ["-config", "ca.cnf"];
    openssl(
        dir,
        &[&["req", "-new", "-key", &key, "-subj", &subject, "-out", &out], &config[..]].concat(),
    )
}

fn sign(
    dir: &Path,
    file: &str,
    extensions: &str,
    (start, end): (&str, &str),
    own: bool,
) -> Result<()> {
    let (csr, out) = (format!("{file}.csr"), format!("{file}.pem.part"));
    let mut args = vec!["ca", "-batch", "-notext", "-config", "ca.cnf", "-extensions", extensions];
    args.extend(["-startdate", start, "-enddate", end, "-in", &csr, "-out", &out]);
    if own {
        args.push("-selfsign");
    }
    openssl(dir, &args)?;
    Ok(std::fs::rename(dir.join(&out), dir.join(format!("{file}.pem")))?)
}

/// For `openssl ca` (openssl-ca(1)), run in the authority's directory.
const CONFIGURATION: &str = "\
[ca]
default_ca = here
[here]
database = index.txt
new_certs_dir = .
rand_serial = yes
private_key = ca.key
certificate = ca.pem
default_md = sha256
policy = named
unique_subject = no
copy_extensions = none
[named]
commonName = supplied
[req]
distinguished_name = subject
[subject]
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost,IP:127.0.0.1,IP:::1@ADDRESSES@
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[client]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
";
