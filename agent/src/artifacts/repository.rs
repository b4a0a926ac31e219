//! Where artifacts are: URLs from names, and which servers may be asked. Pure but for the reading
//! of certificates.

use std::path::Path;
use std::sync::Arc;

use coracle_core::artifact::{ArtifactId, ArtifactRef};
use coracle_core::image::Digest;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::error::{ArtifactError, ArtifactsError};
use crate::config::{Layout, RepositoryConfig};
use crate::http_client::{Policy, Timeouts, Url};

/// The configured repositories, and how servers are spoken to.
#[derive(Clone, Debug)]
pub(super) struct Repositories {
    list: Vec<Repository>,
    pub(super) policy: Arc<Policy>,
}

#[derive(Clone, Debug)]
struct Repository {
    base: Url,
    layout: Layout,
}

impl Repositories {
    pub(super) fn new(
        configured: &[RepositoryConfig],
    ) -> Result<(Self, Vec<ArtifactsError>), ArtifactsError> {
        let mut policy = Policy::default();
        let (mut list, mut troubles) = (Vec::new(), Vec::new());
        for repository in configured {
            let text = &repository.url;
            let base = base(text).ok_or_else(|| ArtifactsError::Url(text.clone()))?;
            match (&repository.ca, base.origin.tls) {
                (Some(_), false) => return Err(ArtifactsError::PlainCa(text.clone())),
                (None, false) => policy.plain.push(base.origin.clone()),
                (None, true) => {}
                (Some(path), true) => match certificates(text, path) {
                    Ok(found) => policy.authorities.push((base.origin.clone(), found)),
                    Err(trouble) => troubles.push(trouble),
                },
            }
            list.push(Repository { base, layout: repository.layout });
        }
        Ok((Self { list, policy: Arc::new(policy) }, troubles))
    }

    pub(super) fn set_timeouts(&mut self, timeouts: Timeouts) {
        let Policy { plain, authorities, .. } = &*self.policy;
        let (plain, authorities) = (plain.clone(), authorities.clone());
        self.policy = Arc::new(Policy { timeouts, plain, authorities, ..Policy::default() });
    }

    /// Where the ZIP may be, to be asked in this order.
    pub(super) fn urls(&self, wanted: &ArtifactRef) -> Result<Vec<Url>, ArtifactError> {
        let id = &wanted.id;
        let Some(ordered) = wanted.repository.as_deref() else {
            if self.list.is_empty() {
                return Err(ArtifactError::NoRepository { artifact: id.clone() });
            }
            return Ok(self.list.iter().map(|it| zip_url(&it.base, it.layout, id)).collect());
        };
        let what = format!("artifact {id}");
        let base = self.allowed(ordered, &what, base(ordered))?;
        let configured = self.list.iter().find(|it| it.base == base);
        let layout = configured.map_or(Layout::default(), |it| it.layout);
        Ok(vec![zip_url(&base, layout, id)])
    }

    /// Any URL of an order.
    pub(super) fn url(&self, ordered: &str, what: &str) -> Result<Url, ArtifactError> {
        self.allowed(ordered, what, Url::parse(ordered))
    }

    fn allowed(&self, text: &str, what: &str, url: Option<Url>) -> Result<Url, ArtifactError> {
        let bad = |why| ArtifactError::Url { url: text.to_owned(), what: what.to_owned(), why };
        let url = url.ok_or_else(|| bad("it is not an https URL without fragment"))?;
        if url.origin.tls || self.policy.plain.contains(&url.origin) {
            return Ok(url);
        }
        Err(bad("plain HTTP is spoken only with repositories that are so configured"))
    }
}

/// The URL of a repository, without a slash at its end.
fn base(text: &str) -> Option<Url> {
    if text.contains(['?', '#']) {
        return None;
    }
    let mut url = Url::parse(text)?;
    url.path.truncate(url.path.trim_end_matches('/').len());
    Some(url)
}

fn zip_url(base: &Url, layout: Layout, id: &ArtifactId) -> Url {
    // Some stores take a plus in a path for a space.
    let (name, version) = (id.name().replace('+', "%2B"), id.version().replace('+', "%2B"));
    let path = match layout {
        Layout::Maven => {
            let group = id.group().replace('.', "/");
            format!("{}/{group}/{name}/{version}/{name}-{version}.zip", base.path)
        }
        Layout::Flat => format!("{}/{}-{name}-{version}.zip", base.path, id.group()),
    };
    Url { origin: base.origin.clone(), path }
}

/// The file beside a ZIP with its digest.
pub(super) fn digest_url(zip: &Url) -> Url {
    Url { origin: zip.origin.clone(), path: format!("{}.sha256", zip.path) }
}

/// What such a file says: 64 hexadecimal digits, and perhaps a file name, as `sha256sum` writes it.
pub(super) fn parse_digest(text: &[u8], zip: &Url) -> Option<Digest> {
    let text = str::from_utf8(text).ok()?.trim_end();
    let (hex, name) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    let name = name.trim_start().trim_start_matches('*');
    let wanted = zip.path.rsplit('/').next().unwrap_or_default().replace("%2B", "+");
    let same = name.is_empty() || name.rsplit('/').next() == Some(wanted.as_str());
    Digest::parse(&format!("sha256:{}", hex.to_ascii_lowercase())).ok().filter(|_| same)
}

fn certificates(url: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ArtifactsError> {
    let (url, path) = (url.to_owned(), path.to_owned());
    let read =
        CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => Err(ArtifactsError::NoCa { url, path }),
        Ok(certificates) => Ok(certificates),
        Err(source) => Err(ArtifactsError::Ca { url, path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(url: &str, layout: Layout) -> RepositoryConfig {
        RepositoryConfig { url: url.into(), layout, ca: None }
    }

    fn wanted(repository: Option<&str>) -> ArtifactRef {
        let id = ArtifactId::parse("org.example:gauge:1.4+b2").unwrap();
        ArtifactRef { id, digest: None, repository: repository.map(Into::into) }
    }

    #[test]
    fn artifacts_are_where_the_layout_says() {
        let (repositories, _) = Repositories::new(&[
            configured("https://repo.example/releases/", Layout::Maven),
            configured("http://10.0.0.1:8081", Layout::Flat),
        ])
        .unwrap();
        let urls = |repository| {
            let urls = repositories.urls(&wanted(repository));
            urls.map(|urls| urls.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let maven = "org/example/gauge/1.4%2Bb2/gauge-1.4%2Bb2.zip";
        let flat = "http://10.0.0.1:8081/org.example-gauge-1.4%2Bb2.zip";
        assert_eq!(
            urls(None).unwrap(),
            [format!("https://repo.example/releases/{maven}"), flat.to_owned()]
        );
        let other = urls(Some("https://other.example")).unwrap();
        assert_eq!(other, [format!("https://other.example/{maven}")]);
        // The layout of a configured one is known, and where plain HTTP is spoken, it may be said.
        assert_eq!(urls(Some("http://10.0.0.1:8081/")).unwrap(), [flat]);
        assert_eq!(
            urls(Some("http://10.0.0.1:8081/x")).unwrap(),
            [format!("http://10.0.0.1:8081/x/{maven}")]
        );
        for bad in ["http://other.example", "ftp://x/", "https://u@x/", "https://x/?a", "x"] {
            let error = urls(Some(bad)).unwrap_err();
            assert!(matches!(error, ArtifactError::Url { .. }), "{bad}: {error}");
        }
        let (none, _) = Repositories::new(&[]).unwrap();
        assert!(matches!(none.urls(&wanted(None)), Err(ArtifactError::NoRepository { .. })));
    }

    #[test]
    fn repositories_that_cannot_be_are_refused() {
        for bad in ["", "repo.example", "https://x/?y", "ftp://x"] {
            let made = Repositories::new(&[configured(bad, Layout::Maven)]);
            assert!(matches!(made, Err(ArtifactsError::Url(_))), "{bad}");
        }
        let mut plain = configured("http://x", Layout::Maven);
        plain.ca = Some("/x.pem".into());
        assert!(matches!(Repositories::new(&[plain]), Err(ArtifactsError::PlainCa(_))));
    }

    #[test]
    fn digests_are_read_as_sha256sum_writes_them() {
        let zip = Url::parse("https://x/a/gauge-1%2B2.zip").unwrap();
        let hex = "0123456789abcdef".repeat(4);
        let read = |text: &str| parse_digest(text.as_bytes(), &zip);
        let digest = Digest::parse(&format!("sha256:{hex}")).unwrap();
        for good in ["", "\n", "  gauge-1+2.zip\n", " *./out/gauge-1+2.zip\n"] {
            assert_eq!(read(&format!("{hex}{good}")).as_ref(), Some(&digest), "{good:?}");
        }
        assert_eq!(read(&hex.to_uppercase()).as_ref(), Some(&digest));
        for bad in ["", "x", &hex[1..], &format!("{hex}  other.zip"), &format!("{hex}0")] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }
}
